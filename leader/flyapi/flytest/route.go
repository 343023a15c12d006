package flytest

import (
	"net/http"
	"strings"
)

// route is one line of the API.
type route struct {
	method string
	path   string // {app}, {id} stand for one segment, {key} for the rest
	action string // for the rate limiter and the audit log
	handle func(*Server, *call) (reply, error)
}

const machinePath = "/v1/apps/{app}/machines/{id}"

func apiRoutes() []route {
	return []route{
		{http.MethodGet, "/v1/apps/{app}/machines", "list", (*Server).list},
		{http.MethodPost, "/v1/apps/{app}/machines", "create", (*Server).create},
		{http.MethodGet, machinePath, "get", (*Server).get},
		{http.MethodPost, machinePath, "update", (*Server).update},
		{http.MethodDelete, machinePath, "destroy", (*Server).destroy},
		{http.MethodPost, machinePath + "/start", "start", (*Server).start},
		{http.MethodPost, machinePath + "/stop", "stop", (*Server).stop},
		{http.MethodPost, machinePath + "/suspend", "suspend", (*Server).suspend},
		{http.MethodPost, machinePath + "/restart", "restart", (*Server).restart},
		{http.MethodPost, machinePath + "/signal", "signal", (*Server).signal},
		{http.MethodPost, machinePath + "/exec", "exec", (*Server).exec},
		{http.MethodPost, machinePath + "/cordon", "cordon", (*Server).cordon},
		{http.MethodPost, machinePath + "/uncordon", "uncordon", (*Server).uncordon},
		{http.MethodGet, machinePath + "/wait", "wait", (*Server).wait},
		{http.MethodGet, machinePath + "/ps", "ps", (*Server).ps},
		{http.MethodGet, machinePath + "/events", "events", (*Server).events},
		{http.MethodGet, machinePath + "/lease", "find_lease", (*Server).findLease},
		{http.MethodPost, machinePath + "/lease", "acquire_lease", (*Server).acquireLease},
		{http.MethodDelete, machinePath + "/lease", "release_lease", (*Server).releaseLease},
		{http.MethodGet, machinePath + "/metadata", "get_metadata", (*Server).metadata},
		{http.MethodPut, machinePath + "/metadata", "put_metadata", (*Server).putMetadata},
		{http.MethodPatch, machinePath + "/metadata", "patch_metadata", (*Server).patchMetadata},
		{http.MethodPost, machinePath + "/metadata/{key}", "set_metadata", (*Server).setMetadata},
		{http.MethodDelete, machinePath + "/metadata/{key}", "delete_metadata", (*Server).deleteMetadata},
		{http.MethodGet, "/v1/apps/{app}/volumes", "list_volumes", (*Server).volumes},
		{http.MethodPost, "/v1/apps", "create_app", (*Server).createApp},
		{http.MethodGet, "/v1/apps/{app}", "get_app", (*Server).getApp},
		{http.MethodGet, "/v1/platform/regions", "regions", (*Server).regions},
		{http.MethodPost, "/v1/platform/placements", "placements", (*Server).placements},
		{http.MethodPost, "/v1/tokens/oidc", "oidc_token", (*Server).oidcToken},
	}
}

// match finds the call's route and the names in its path.
func (c *call) match(method, path string) bool {
	have := strings.Split(strings.Trim(path, "/"), "/")
	for _, r := range apiRoutes() {
		if r.method != method {
			continue
		}
		want := strings.Split(strings.Trim(r.path, "/"), "/")
		rest := want[len(want)-1] == "{key}"
		if len(have) != len(want) && !(rest && len(have) > len(want)) {
			continue
		}
		app, id, key, same := "", "", "", true
		for i, w := range want {
			switch w {
			case "{app}":
				app = have[i]
			case "{id}":
				id = have[i]
			case "{key}":
				key = strings.Join(have[i:], "/")
			default:
				same = same && w == have[i]
			}
		}
		if same {
			c.route, c.app, c.id, c.key = &r, app, id, key
			return true
		}
	}
	return false
}

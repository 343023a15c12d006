// An embeddings server with a real ONNX Runtime and the HTTP surface and
// metric names of text-embeddings-inference. One model, one thread, batches.
//
//   node server.mjs MODEL PORT
//
// Environment: LOAD_DELAY_MS more to load; EARLY=0 listens only when loaded, as
// TEI does; MAX_CONCURRENT texts at once, more get 429. SIGTERM drains.
// GET /count is the server's own tally of answers by status, for tests.
import { createServer } from 'node:http';
import { performance } from 'node:perf_hooks';

const [model, port] = process.argv.slice(2);
const env = (name, otherwise) => Number(process.env[name] ?? otherwise);
const maxConcurrent = env('MAX_CONCURRENT', 512), maxBatch = 8;

let state = 'loading', runtime, session, inFlight = 0, pumping = false;
const queue = [], tally = {};

// Metrics.
const counters = new Map();
const histograms = { te_request_duration: null, te_request_queue_duration: null, te_request_inference_duration: null };
const edges = Array.from({ length: 35 }, (_, i) => 1e-5 * 1.5 ** (i + 1));
for (const name of Object.keys(histograms)) histograms[name] = { buckets: new Array(edges.length).fill(0), sum: 0, count: 0 };
const count = (series) => counters.set(series, (counters.get(series) ?? 0) + 1);
function observe(name, seconds) {
  const h = histograms[name];
  h.sum += seconds;
  h.count++;
  edges.forEach((edge, i) => { if (seconds <= edge) h.buckets[i]++; });
}
function exposition() {
  const lines = ['# TYPE te_queue_size gauge', `te_queue_size ${queue.length}`, '# TYPE te_inflight_requests gauge', `te_inflight_requests ${inFlight}`];
  for (const family of new Set([...counters.keys()].map((s) => s.split('{')[0]))) {
    lines.push(`# TYPE ${family} counter`);
    for (const [series, n] of counters) if (series.startsWith(family + '{')) lines.push(`${series} ${n}`);
  }
  for (const [name, h] of Object.entries(histograms)) {
    lines.push(`# TYPE ${name} histogram`, ...edges.map((edge, i) => `${name}_bucket{le="${edge}"} ${h.buckets[i]}`),
      `${name}_bucket{le="+Inf"} ${h.count}`, `${name}_sum ${h.sum}`, `${name}_count ${h.count}`);
  }
  return lines.join('\n') + '\n';
}

// Words become numbers by a hash (FNV-1a): a vocabulary would change nothing.
function tokens(text) {
  const ids = (text.toLowerCase().match(/[a-z0-9]+|[^\sa-z0-9]/g) ?? []).slice(0, 254).map((word) => {
    let h = 2166136261;
    for (const c of word) h = Math.imul(h ^ c.charCodeAt(0), 16777619);
    return 1000 + ((h >>> 0) % 29000);
  });
  return [101, ...ids, 102];
}

async function infer(list) {
  const length = Math.max(...list.map((l) => l.length));
  const ids = new BigInt64Array(list.length * length), mask = new BigInt64Array(list.length * length);
  list.forEach((l, i) => l.forEach((id, j) => { ids[i * length + j] = BigInt(id); mask[i * length + j] = 1n; }));
  const shape = [list.length, length];
  const out = (await session.run({
    input_ids: new runtime.Tensor('int64', ids, shape), attention_mask: new runtime.Tensor('int64', mask, shape),
  })).sentence_embedding;
  const width = out.dims[1];
  return list.map((_, i) => Array.from(out.data.subarray(i * width, (i + 1) * width)));
}

async function pump() {
  if (pumping) return;
  pumping = true;
  while (queue.length > 0) {
    const batch = queue.splice(0, maxBatch), begin = performance.now();
    batch.forEach((job) => observe('te_request_queue_duration', (begin - job.at) / 1000));
    try {
      const vectors = await infer(batch.map((job) => job.ids));
      batch.forEach((job, i) => { observe('te_request_inference_duration', (performance.now() - begin) / 1000); job.done(vectors[i]); });
    } catch (error) {
      batch.forEach((job) => job.fail(error));
    }
  }
  pumping = false;
}
const embed = (text) => new Promise((done, fail) => { queue.push({ ids: tokens(text), at: performance.now(), done, fail }); pump(); });

function answer(response, status, body) {
  response.writeHead(status, { 'content-type': 'application/json' });
  response.end(JSON.stringify(body));
}
function finish(response, status, body) {
  tally[status] = (tally[status] ?? 0) + 1;
  answer(response, status, body);
}

async function serveEmbed(request, response, openAI) {
  if (state !== 'ready') return finish(response, 503, { error: `model is ${state}`, error_type: 'unhealthy' });
  const begin = performance.now();
  const chunks = [];
  for await (const c of request) chunks.push(c);
  let input;
  try {
    const body = JSON.parse(Buffer.concat(chunks));
    input = openAI ? body.input : body.inputs;
  } catch {
    return finish(response, 400, { error: 'not JSON', error_type: 'validation' });
  }
  const list = [].concat(input ?? []), label = `{method="${Array.isArray(input) ? 'batch' : 'single'}"}`;
  if (list.length === 0) return finish(response, 400, { error: 'nothing to embed', error_type: 'empty' });
  count('te_request_count' + label);
  if (inFlight + list.length > maxConcurrent) {
    count('te_request_failure{err="overloaded"}');
    return finish(response, 429, { error: 'Model is overloaded', error_type: 'overloaded' });
  }
  inFlight += list.length;
  try {
    const vectors = await Promise.all(list.map(embed));
    count('te_request_success' + label);
    observe('te_request_duration', (performance.now() - begin) / 1000);
    finish(response, 200, openAI ? { object: 'list', data: vectors.map((embedding, index) => ({ object: 'embedding', index, embedding })) } : vectors);
  } catch (error) {
    count('te_request_failure{err="inference"}');
    finish(response, 424, { error: String(error), error_type: 'backend' });
  } finally {
    inFlight -= list.length;
  }
}

const server = createServer((request, response) => {
  const route = `${request.method} ${request.url.split('?')[0]}`;
  switch (route) {
    case 'GET /health': return state === 'ready' ? answer(response, 200, {}) : answer(response, 503, { error: state, error_type: 'unhealthy' });
    case 'GET /metrics': response.writeHead(200, { 'content-type': 'text/plain; version=0.0.4' }); return response.end(exposition());
    case 'GET /count': return answer(response, 200, tally);
    case 'POST /embed': return serveEmbed(request, response, false);
    case 'POST /v1/embeddings': return serveEmbed(request, response, true);
  }
  answer(response, 404, { error: 'no such path' });
});
const listen = () => new Promise((listening) => server.listen(Number(port), '127.0.0.1', listening));

process.on('SIGTERM', () => {
  state = 'draining'; // new embeds get 503 until the last one in flight is answered
  let quiet = 0;
  setInterval(() => {
    quiet = inFlight > 0 ? 0 : quiet + 1;
    if (quiet < 10) return; // some may be on their way through the socket
    server.close(() => process.exit(0));
    server.closeIdleConnections();
  }, 10);
});

const early = env('EARLY', 1) !== 0;
if (early) await listen();
runtime = (await import('onnxruntime-node')).default;
await new Promise((wait) => setTimeout(wait, env('LOAD_DELAY_MS', 0)));
session = await runtime.InferenceSession.create(model, { intraOpNumThreads: 1, interOpNumThreads: 1 });
await infer([tokens('warm up')]);
if (state === 'loading') state = 'ready';
if (!early) await listen();

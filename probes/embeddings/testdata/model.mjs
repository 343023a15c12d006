// Writes an ONNX text encoder in the shape of all-MiniLM-L6-v2: six layers,
// width 384, 12 heads, 1,536 inside, 30,522 words. The graph and the work are
// those of the real model; the weights are seeded random numbers, so the
// vectors mean nothing.
//
//   node model.mjs FILE [LAYERS]
import { writeFileSync } from 'node:fs';

const [file, layers = '6'] = process.argv.slice(2);
const width = 384, heads = 12, inner = 1536, words = 30522, positions = 512;
const FLOAT = 1, INT64 = 7;

// Protocol buffers, only what ONNX needs (https://onnx.ai/onnx/repo-docs/IR.html).
function varint(n) {
  const out = [];
  for (n = BigInt.asUintN(64, BigInt(n)); n > 127n; n >>= 7n) out.push(Number(n & 127n) | 128);
  return Buffer.from([...out, Number(n)]);
}
const number = (field, n) => Buffer.concat([varint(field << 3), varint(n)]);
function bytes(field, ...parts) {
  const body = Buffer.concat(parts.map((p) => (typeof p === 'string' ? Buffer.from(p) : p)));
  return Buffer.concat([varint((field << 3) | 2), varint(body.length), body]);
}
function float(field, x) {
  const body = Buffer.alloc(4);
  body.writeFloatLE(x);
  return Buffer.concat([varint((field << 3) | 5), body]);
}

// Graph: nodes and constants are collected in order.
const nodes = [], constants = [];
let seed = 1;
function random() { // xorshift32, -0.5 to 0.5
  seed ^= seed << 13; seed ^= seed >>> 17; seed ^= seed << 5;
  return (seed >>> 0) / 2 ** 32 - 0.5;
}
function constant(name, shape, values, type = FLOAT) {
  const data = type === INT64 ? BigInt64Array.from(values, BigInt) : values instanceof Float32Array ? values : Float32Array.from(values);
  constants.push(bytes(5, ...shape.map((n) => number(1, n)), number(2, type), bytes(8, name), bytes(9, Buffer.from(data.buffer))));
  return name;
}
function weights(name, shape, scale) {
  const values = new Float32Array(shape.reduce((a, b) => a * b));
  for (let i = 0; i < values.length; i++) values[i] = 2 * scale * random();
  return constant(name, shape, values);
}
const ints = (name, ...values) => constant(name, [values.length], values, INT64);
const scalar = (name, x) => constant(name, [], [x]);
const attribute = {
  int: (name, n) => bytes(5, bytes(1, name), number(3, n), number(20, 2)),
  ints: (name, ...list) => bytes(5, bytes(1, name), ...list.map((n) => number(8, n)), number(20, 7)),
  float: (name, x) => bytes(5, bytes(1, name), float(2, x), number(20, 1)),
};
let unnamed = 0;
function op(type, inputs, attributes = [], output = `t${unnamed++}`) {
  nodes.push(bytes(1, ...inputs.map((i) => bytes(1, i)), bytes(2, output), bytes(4, type), ...attributes));
  return output;
}
const norm = (x, name) => op('LayerNormalization', [x, constant(`${name}.g`, [width], new Float32Array(width).fill(1)), constant(`${name}.b`, [width], new Float32Array(width))],
  [attribute.int('axis', -1), attribute.float('epsilon', 1e-12)]);
const linear = (x, name, from, to) => op('Add', [op('MatMul', [x, weights(`${name}.w`, [from, to], 1 / Math.sqrt(from))]), constant(`${name}.b`, [to], new Float32Array(to))]);

ints('i1', 1); ints('i0', 0); ints('last', -1); ints('middle', 1, 2); ints('split', 0, 0, heads, width / heads); ints('join', 0, 0, width);
scalar('one', 1); scalar('half', 0.5); scalar('root2', Math.SQRT2); scalar('far', -1e4); scalar('scale', Math.sqrt(heads / width));

const length = op('Gather', [op('Shape', ['input_ids']), 'i1'], [attribute.int('axis', 0)]);
const places = op('Slice', [weights('positions', [positions, width], 0.05), 'i0', length, 'i0']);
let x = norm(op('Add', [op('Gather', [weights('words', [words, width], 0.05), 'input_ids']), places]), 'embed');
const mask = op('Cast', ['attention_mask'], [attribute.int('to', FLOAT)]);
const bias = op('Mul', [op('Sub', ['one', op('Unsqueeze', [mask, 'middle'])]), 'far']);

for (let i = 0; i < Number(layers); i++) {
  const part = (name, ...turn) => op('Transpose', [op('Reshape', [linear(x, `${i}.${name}`, width, width), 'split'])], [attribute.ints('perm', ...turn)]);
  const q = part('q', 0, 2, 1, 3), k = part('k', 0, 2, 3, 1), v = part('v', 0, 2, 1, 3);
  const scores = op('Add', [op('Mul', [op('MatMul', [q, k]), 'scale']), bias]);
  const mixed = op('Transpose', [op('MatMul', [op('Softmax', [scores], [attribute.int('axis', -1)]), v])], [attribute.ints('perm', 0, 2, 1, 3)]);
  x = norm(op('Add', [linear(op('Reshape', [mixed, 'join']), `${i}.o`, width, width), x]), `${i}.n1`);
  const up = linear(x, `${i}.up`, width, inner);
  const gelu = op('Mul', [op('Mul', [up, op('Add', [op('Erf', [op('Div', [up, 'root2'])]), 'one'])]), 'half']);
  x = norm(op('Add', [linear(gelu, `${i}.down`, inner, width), x]), `${i}.n2`);
}

// The mean over the words that are there, then to length 1.
const there = op('Unsqueeze', [mask, 'last']);
const total = op('ReduceSum', [op('Mul', [x, there]), 'i1'], [attribute.int('keepdims', 0)]);
const mean = op('Div', [total, op('ReduceSum', [there, 'i1'], [attribute.int('keepdims', 0)])]);
op('Div', [mean, op('ReduceL2', [mean], [attribute.ints('axes', -1), attribute.int('keepdims', 1)])], [], 'sentence_embedding');

const dimension = (d) => bytes(1, typeof d === 'number' ? number(1, d) : bytes(2, d));
const value = (field, name, type, shape) => bytes(field, bytes(1, name), bytes(2, bytes(1, number(1, type), bytes(2, ...shape.map(dimension)))));
const graph = bytes(7, ...nodes, bytes(2, 'encoder'), ...constants,
  value(11, 'input_ids', INT64, ['batch', 'length']), value(11, 'attention_mask', INT64, ['batch', 'length']),
  value(12, 'sentence_embedding', FLOAT, ['batch', width]));
writeFileSync(file, Buffer.concat([number(1, 8), graph, bytes(8, bytes(1, ''), number(2, 17))]));

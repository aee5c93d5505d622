// Burns CPU in three functions with a known split under nested callers, which V8 compiles as it likes.
//
// Usage: node split.js SECONDS. Prints `ready`, then the truth as one JSON line: CPU time of each, in us.
'use strict';

let sink = 0;

function half(rounds) {
  let value = 1;
  for (let index = 0; index < rounds; index++) {
    value = (value * 1103515245 + 12345) % 2147483648;
  }
  sink += value;
}

function third(rounds) {
  let value = 1;
  for (let index = 0; index < rounds; index++) {
    value = Math.sqrt(value + index);
  }
  sink += value;
}

// Makes garbage, and has a function of V8's own called.
function fifth(rounds) {
  let value = 0;
  for (let index = 0; index < rounds; index++) {
    value += String(index).length;
  }
  sink += value;
}

function cpuUs() {
  const usage = process.cpuUsage();
  return usage.user + usage.system;
}

const spent = [0, 0, 0];

function work() {
  const start = cpuUs();
  half(1000000);
  const first = cpuUs();
  third(2800000);
  const second = cpuUs();
  fifth(400000);
  spent[0] += first - start;
  spent[1] += second - first;
  spent[2] += cpuUs() - second;
}

function nested(depth) {
  if (depth > 0) {
    nested(depth - 1);
    sink++;
    return;
  }
  work();
}

console.log('ready');
const end = Date.now() + 1000 * Number(process.argv[2]);
while (Date.now() < end) {
  nested(5);
}
console.log(JSON.stringify({ half_us: spent[0], third_us: spent[1], fifth_us: spent[2] }));

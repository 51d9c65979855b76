"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const palettes = { sequential: bytes(data.sequential), diverging: bytes(data.diverging) };
const MINUS = "\u2212";

function bytes(hex) {
  return Uint8Array.from(hex.match(/../g), (pair) => parseInt(pair, 16));
}

// As capalloc.app.report.section.exact.
function exact(value) {
  const size = Math.abs(value);
  const text = size >= 1000 ? Math.round(value).toLocaleString("en-US") : String(Number(value.toPrecision(4)));
  return text.replace("-", MINUS);
}

function signed(value) {
  return (value > 0 ? "+" : "") + exact(value);
}

function product(numbers) {
  return numbers.reduce((a, b) => a * b, 1);
}

// A stack of maps as capalloc.app.report.encode wrote it: planes over the last two axes, leading ones summed or chosen.
class Stack {
  constructor(coded, line) {
    const raw = Uint8Array.from(atob(coded.data), (c) => c.charCodeAt(0)).buffer;
    this.values = new { f4: Float32Array, u2: Uint16Array, u1: Uint8Array }[coded.type](raw);
    this.low = coded.low;
    this.step = coded.step;
    const inner = coded.shape.slice(1);
    const flat = line && inner.length === 1;
    this.cols = inner[inner.length - 1];
    this.rows = flat ? 1 : inner[inner.length - 2];
    this.lead = inner.slice(0, flat ? -1 : -2);
    this.block = flat ? [1, coded.block[0]] : coded.block.slice(-2);
    this.length = product(inner);
  }

  value(k, index) {
    const value = this.values[k * this.length + index];
    return this.step.length ? this.low[k] + this.step[k] * value : value;
  }

  // Numbers of the leading places that are chosen; -1 is all of an axis.
  places(pick) {
    let places = [0];
    this.lead.forEach((size, axis) => {
      const chosen = pick[axis] >= 0 ? [pick[axis]] : Array.from({ length: size }, (_, i) => i);
      places = places.flatMap((place) => chosen.map((i) => place * size + i));
    });
    return places;
  }

  at(k, place, row, col) {
    const [high, wide] = this.block;
    const inside = Math.floor(row / high) * this.cols + Math.floor(col / wide);
    return this.value(k, place * this.rows * this.cols + inside);
  }

  plane(k, pick, rows, cols) {
    const sums = new Float64Array(this.rows * this.cols);
    for (const place of this.places(pick)) {
      for (let i = 0; i < sums.length; i++) sums[i] += this.value(k, place * sums.length + i);
    }
    const [high, wide] = this.block;
    if (high === 1 && wide === 1) return sums;
    const out = new Float64Array(rows * cols);
    for (let row = 0, i = 0; row < rows; row++) {
      for (let col = 0; col < cols; col++) out[i++] = sums[Math.floor(row / high) * this.cols + Math.floor(col / wide)];
    }
    return out;
  }
}

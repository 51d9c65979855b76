// Figures over the same inputs, read together under one pointer.
class Explorer {
  constructor(root, spec) {
    this.root = root;
    this.spec = spec;
    const axes = spec.axes.length;
    this.cols = spec.shape[axes - 1];
    this.rows = axes > 1 ? spec.shape[axes - 2] : 1;
    this.maps = this.stack(spec.maps);
    this.errors = Object.fromEntries(Object.entries(spec.errors).map(([k, coded]) => [k, this.stack(coded)]));
    this.layerStacks = new Map();
    this.pick = this.maps.lead.map(() => -1);
    this.layer = null;
    this.cursor = null;
    this.readout = root.querySelector(".readout");
    this.controls = root.querySelector(".controls");
    this.layerSelect = this.controls.querySelector("[data-role=layer]");
    this.figures = [...root.querySelectorAll(".maps figure")].map((figure, k) => this.bring(figure, spec.figures[k]));
    this.listen();
    this.update();
    new ResizeObserver(() => this.draw()).observe(root);
  }

  stack(coded) {
    return new Stack(coded, this.spec.line);
  }

  // A canvas in the place of the still picture.
  bring(figure, spec) {
    const still = figure.querySelector(".still");
    const canvas = document.createElement("canvas");
    const words = still.querySelector("svg").getAttribute("aria-label");
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-roledescription", "map");
    canvas.setAttribute("aria-label", `${words}. Arrow keys move through it.`);
    still.after(canvas);
    still.hidden = true;
    const point = (event) => this.point(canvas, event);
    canvas.addEventListener("pointermove", point);
    canvas.addEventListener("pointerdown", point);
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("focus", () => this.cursor || this.go(this.largest(spec)));
    const ends = [figure.querySelector(".low"), figure.querySelector(".high")];
    return { figure, spec, canvas, ends, bar: figure.querySelector(".bar"), context: canvas.getContext("2d") };
  }

  listen() {
    const inputs = this.controls.querySelectorAll("select, input");
    this.controls.hidden = !inputs.length;
    this.readout.hidden = false;
    const names = this.spec.axes.slice(0, this.maps.lead.length);
    for (const input of inputs) {
      input.addEventListener("input", () => {
        const number = input.value === "" ? -1 : Number(input.value);
        if (input.dataset.role === "layer") return this.choose(number < 0 ? null : number);
        this.pick[names.indexOf(input.dataset.axis)] = number;
        const words = number < 0 ? "all, summed" : `${input.dataset.axis} ${number}`;
        if (input.type === "range") {
          input.setAttribute("aria-valuetext", words);
          input.nextElementSibling.textContent = words;
        }
        this.update();
      });
    }
  }

  choose(layer) {
    this.layer = layer;
    if (this.layerSelect) this.layerSelect.value = layer === null ? "" : String(layer);
    for (const button of document.querySelectorAll(`[data-for="${this.root.dataset.explorer}"] .pick`)) {
      button.setAttribute("aria-pressed", String(Number(button.parentElement.dataset.layer) === layer));
    }
    this.update();
  }

  // The stack and the number in it that show a result now; null where the chosen layer is not in its table.
  source(k) {
    if (this.layer === null) return [this.maps, k];
    const coded = this.spec.layers.maps[k];
    const row = coded ? coded.rows[this.layer] : -1;
    if (row < 0) return null;
    if (!this.layerStacks.has(k)) this.layerStacks.set(k, this.stack(coded));
    return [this.layerStacks.get(k), row];
  }

  plane(spec) {
    const size = [this.rows, this.cols];
    if (spec.kind === "error") {
      return this.layer === null ? this.errors[spec.of[0]].plane(0, this.pick, ...size) : null;
    }
    const planes = spec.of.map((k) => this.source(k)).map((s) => s && s[0].plane(s[1], this.pick, ...size));
    if (planes.some((p) => p === null)) return null;
    return planes.length === 1 ? planes[0] : planes[1].map((value, i) => value - planes[0][i]);
  }

  update() {
    const top = { map: 0, difference: 0, error: 0 };
    let least = 0;
    for (const figure of this.figures) {
      figure.plane = this.plane(figure.spec);
      figure.figure.hidden = figure.plane === null;
      for (const value of figure.plane || []) {
        top[figure.spec.kind] = Math.max(top[figure.spec.kind], Math.abs(value));
        if (figure.spec.kind === "map") least = Math.min(least, value);
      }
    }
    for (const figure of this.figures) {
      const high = top[figure.spec.kind] || 1;
      // Rounding alone is no sign.
      const diverging = figure.spec.kind === "difference" || (figure.spec.kind === "map" && least < -1e-6 * high);
      figure.range = [diverging ? -high : 0, high];
      figure.palette = diverging ? "diverging" : "sequential";
      if (!figure.bar || !figure.plane) continue;
      figure.picture = this.paint(figure);
      figure.bar.className = `bar ${figure.palette}`;
      figure.ends[0].textContent = exact(figure.range[0]);
      figure.ends[1].textContent = (diverging ? "+" : "") + exact(high);
    }
    this.draw();
    this.tell();
  }

  // The map at one pixel an entry.
  paint({ plane, palette, range: [low, high] }) {
    const picture = new ImageData(this.cols, this.rows);
    const colours = palettes[palette];
    for (let i = 0; i < plane.length; i++) {
      const shade = 3 * Math.min(255, Math.max(0, Math.round((255 * (plane[i] - low)) / (high - low))));
      for (let part = 0; part < 3; part++) picture.data[4 * i + part] = colours[shade + part];
      picture.data[4 * i + 3] = 255;
    }
    const canvas = document.createElement("canvas");
    canvas.width = this.cols;
    canvas.height = this.rows;
    canvas.getContext("2d", { willReadFrequently: true }).putImageData(picture, 0, 0);
    return canvas;
  }

  draw() {
    for (const figure of this.figures) {
      if (figure.plane === null) continue;
      const width = figure.canvas.clientWidth;
      if (!width) continue;
      const across = this.spec.line ? 0.5 : Math.min(Math.max(this.rows / this.cols, 0.1), 1.5);
      const height = Math.round(width * across);
      const ratio = window.devicePixelRatio || 1;
      figure.canvas.style.height = `${height}px`;
      figure.canvas.width = Math.round(width * ratio);
      figure.canvas.height = Math.round(height * ratio);
      figure.context.setTransform(ratio, 0, 0, ratio, 0, 0);
      (this.spec.line ? this.drawLine : this.drawMap).call(this, figure, width, height);
    }
  }

  drawMap(figure, width, height) {
    const { context } = figure;
    context.imageSmoothingEnabled = false;
    context.drawImage(figure.picture, 0, 0, width, height);
    const cell = [width / this.cols, height / this.rows];
    if (cell[0] >= 30 && cell[1] >= 16) this.drawNumbers(figure, cell);
    for (const [name, path] of Object.entries(figure.spec.lines)) this.drawOutline(context, name, path, cell);
    if (this.cursor) this.drawCursor(context, cell);
  }

  drawNumbers({ context, plane, spec, picture, range }, [wide, high]) {
    const rgb = picture.getContext("2d").getImageData(0, 0, this.cols, this.rows).data;
    // Two digits of the largest value, and one decimal at least below a thousand.
    const digits = range[1] >= 1000 ? 0 : Math.min(4, Math.max(1, 1 - Math.floor(Math.log10(range[1]))));
    context.font = `${Math.min(13, wide / (digits > 1 ? 3.6 : 3.1))}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    plane.forEach((value, i) => {
      const [r, g, b] = rgb.subarray(4 * i, 4 * i + 3);
      context.fillStyle = 0.299 * r + 0.587 * g + 0.114 * b > 127 ? "#000" : "#fff";
      const rounded = Number(value.toFixed(digits)) || 0; // no minus before a zero
      const text = (spec.kind === "difference" && rounded > 0 ? "+" : "") + (rounded ? rounded.toFixed(digits) : "0");
      context.fillText(text.replace("-", MINUS), ((i % this.cols) + 0.5) * wide, (Math.floor(i / this.cols) + 0.5) * high);
    });
  }

  drawOutline(context, name, path, [wide, high]) {
    const drawn = new Path2D();
    drawn.addPath(new Path2D(path), new DOMMatrix([wide, 0, 0, high, 0, 0]));
    context.setLineDash({ theoretical: [1.5, 3], "ring-95": [4, 3] }[name] || []);
    context.lineWidth = 1.5;
    context.strokeStyle = "#fff";
    context.stroke(drawn);
    context.setLineDash([]);
  }

  drawCursor(context, [wide, high]) {
    const [row, col] = this.cursor;
    const size = [Math.max(wide, 5), Math.max(high, 5)];
    const corner = [(col + 0.5) * wide - size[0] / 2, (row + 0.5) * high - size[1] / 2];
    for (const [line, colour] of [[4, "#000"], [2, "#fff"]]) {
      context.lineWidth = line;
      context.strokeStyle = colour;
      context.strokeRect(...corner, ...size);
    }
  }

  // Bars from zero, where positions are few, or the outline of them.
  drawLine(figure, width, height) {
    const { context, plane, spec, canvas } = figure;
    const [low, high] = figure.range;
    const style = getComputedStyle(canvas);
    const soft = getComputedStyle(this.root.querySelector(".key")).color;
    const room = { top: 16, bottom: 18 };
    const y = (value) => height - room.bottom - ((value - low) / (high - low)) * (height - room.top - room.bottom);
    const step = width / this.cols;
    const gap = step > 4 ? 1 : 0;
    context.clearRect(0, 0, width, height);
    context.fillStyle = style.color;
    plane.forEach((value, i) => {
      context.globalAlpha = this.cursor && this.cursor[1] !== i ? 0.55 : 1;
      context.fillRect(i * step, Math.min(y(value), y(0)), Math.max(step - gap, 0.75), Math.abs(y(value) - y(0)));
    });
    context.globalAlpha = 1;
    if (this.cursor && step < 3) context.fillRect((this.cursor[1] + 0.5) * step - 0.5, room.top, 1, y(0) - room.top);
    context.fillStyle = context.strokeStyle = soft;
    context.fillRect(0, y(0), width, 1);
    context.font = "12px system-ui, sans-serif";
    context.textBaseline = "alphabetic";
    context.textAlign = "left";
    context.fillText(`${exact(high)} ${this.spec.unit}`, 0, 11);
    if (low < 0) context.fillText(exact(low), 0, y(low) - 3);
    const axis = this.spec.axes[this.spec.axes.length - 1];
    context.fillText(this.label(axis, 0), 0, height - 4);
    context.textAlign = "center";
    context.fillText(axis, width / 2, height - 4);
    context.textAlign = "right";
    context.fillText(this.label(axis, this.cols - 1), width, height - 4);
    for (const [name, ends] of Object.entries(spec.edges)) this.drawEdges(context, name, ends, step, y(0));
  }

  drawEdges(context, name, ends, step, floor) {
    context.setLineDash({ theoretical: [1.5, 3], "95%": [4, 3] }[name] || []);
    for (const end of ends) {
      context.beginPath();
      context.moveTo((end + 0.5) * step, 16);
      context.lineTo((end + 0.5) * step, floor);
      context.stroke();
    }
    context.setLineDash([]);
  }

  point(canvas, event) {
    const box = canvas.getBoundingClientRect();
    const row = this.spec.line ? 0 : Math.floor(((event.clientY - box.top) / box.height) * this.rows);
    this.go([row, Math.floor(((event.clientX - box.left) / box.width) * this.cols)]);
  }

  key(event) {
    const [row, col] = this.cursor || [0, 0];
    const far = Math.max(1, Math.round((this.spec.line ? this.cols : this.rows) / 8));
    const jump = this.spec.line ? [0, far] : [far, 0];
    const to = {
      ArrowLeft: [row, col - 1],
      ArrowRight: [row, col + 1],
      ArrowUp: [row - 1, col],
      ArrowDown: [row + 1, col],
      Home: [row, 0],
      End: [row, this.cols - 1],
      PageUp: [row - jump[0], col - jump[1]],
      PageDown: [row + jump[0], col + jump[1]],
    }[event.key];
    if (!to || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.go(to);
  }

  go([row, col]) {
    const inside = (value, size) => Math.min(Math.max(value, 0), size - 1);
    const next = [inside(row, this.rows), inside(col, this.cols)];
    if (this.cursor && next[0] === this.cursor[0] && next[1] === this.cursor[1]) return;
    this.cursor = next;
    if (!this.waiting) {
      this.waiting = requestAnimationFrame(() => {
        this.waiting = null;
        this.draw();
      });
    }
    this.tell();
  }

  largest(spec) {
    const { plane } = this.figures.find((figure) => figure.spec === spec);
    let best = 0;
    plane.forEach((value, i) => (best = Math.abs(value) > Math.abs(plane[best]) ? i : best));
    return [Math.floor(best / this.cols), best % this.cols];
  }

  label(axis, index) {
    return (this.spec.labels[axis] || [])[index] ?? String(index);
  }

  // What stands under the cursor, for eyes and for screen readers.
  tell() {
    const parts = [];
    const layer = this.layer === null ? [] : [this.spec.layers.names[this.layer]];
    if (layer.length || this.cursor) parts.push(["", [...layer, ...(this.cursor ? [this.place()] : [])].join(", "), ""]);
    if (this.cursor) {
      this.spec.names.forEach((name, k) => parts.push(this.value(name, k)));
      const difference = this.figures.find(({ spec, plane }) => spec.kind === "difference" && plane);
      if (difference) {
        const value = difference.plane[this.cursor[0] * this.cols + this.cursor[1]];
        parts.push(["difference", signed(value), ""]);
      }
    } else if (this.layer !== null) {
      this.spec.names.forEach((name, k) => {
        const total = this.spec.layers.totals[k][this.layer];
        parts.push([name, total === null ? "none" : exact(total), k ? "" : `${this.spec.unit} in all`]);
      });
    }
    if (!parts.length) return;
    this.readout.replaceChildren(
      ...parts.map(([name, value, more]) => {
        const bold = document.createElement("b");
        bold.textContent = value;
        if (!name) return bold;
        const span = document.createElement("span");
        span.append(`${name} `, bold, more && ` ${more}`);
        return span;
      })
    );
  }

  place() {
    const places = this.spec.line ? [this.cursor[1]] : this.cursor;
    const axes = this.spec.axes.slice(-places.length);
    return axes.map((axis, i) => `${axis} ${this.label(axis, places[i])}`).join(", ");
  }

  value(name, k) {
    const source = this.source(k);
    if (!source) return [name, "none", ""];
    const [row, col] = this.cursor;
    const parts = source[0].places(this.pick).map((place) => source[0].at(source[1], place, row, col));
    let value = exact(parts.reduce((a, b) => a + b, 0));
    const error = this.layer === null && this.errors[k];
    if (error) {
      const sum = error.places(this.pick).reduce((total, place) => total + error.at(0, place, row, col), 0);
      value += ` ± ${exact(sum)}`;
    }
    return [name, value, parts.length > 1 && parts.length <= 4 ? `= ${parts.map(exact).join(" + ")}` : ""];
  }
}

// The map: a point for each latent, where its decoder row lies in the plane.
"use strict";

(() => {
  const { state, number, make } = viewer;
  const MARGIN = 16, STEPS = 8;
  const GREY = "var(--line)"; // latents of which the list says nothing

  // From the last latents of the list to the first, as CSS knows them.
  const ink = (step) =>
    `color-mix(in oklab, var(--heat) ${Math.round(100 * step / (STEPS - 1))}%, var(--link))`;

  // Colors as this page has them now: a canvas knows no variables.
  function color(canvas, value) {
    canvas.style.color = value;
    const found = getComputedStyle(canvas).color;
    canvas.style.color = "";
    return found;
  }

  function placed(canvas) {
    const { x, y } = viewer, n = x.length;
    let [left, right, low, high] = [Infinity, -Infinity, Infinity, -Infinity];
    for (let i = 0; i < n; i++) {
      left = Math.min(left, x[i]); right = Math.max(right, x[i]);
      low = Math.min(low, y[i]); high = Math.max(high, y[i]);
    }
    const wide = canvas.clientWidth - 2 * MARGIN, tall = canvas.clientHeight - 2 * MARGIN;
    const at = { x: new Float32Array(n), y: new Float32Array(n) };
    for (let i = 0; i < n; i++) {
      at.x[i] = MARGIN + wide * (x[i] - left) / (right - left || 1);
      at.y[i] = MARGIN + tall * (high - y[i]) / (high - low || 1);
    }
    return at;
  }

  const sorted = () => viewer.columns.find((column) => column.key === state.sort) ?? null;

  // Of the latents found those with a number to sort by: the list has the others last.
  function placedLatents() {
    const found = viewer.found(), column = sorted();
    return column ? found.filter((id) => !Number.isNaN(column.values[id])) : found;
  }

  // Of each such latent its step, from 0 (last of the list) to STEPS - 1 (first); -1 of others.
  function stepsOf(latents) {
    const steps = new Int8Array(viewer.about.n_latents).fill(-1);
    const most = Math.max(1, latents.length - 1);
    latents.forEach((id, place) => {
      steps[id] = Math.min(STEPS - 1, Math.floor(STEPS * (1 - place / most)));
    });
    return steps;
  }

  // What the colours mean, in words and with the numbers at their ends.
  function explain(legend) {
    const latents = placedLatents(), column = sorted();
    const value = (place) => number(column ? column.values[latents[place]] : latents[place]);
    const last = latents.length - 1;
    const name = column ? `${column.label}${column.on ? ` (${column.on})` : ""}` : "number";
    const swatches = Array.from({ length: STEPS }, (_, step) => swatch(ink(step)));
    const unfound = viewer.about.n_latents - viewer.found().length;
    const without = viewer.found().length - latents.length;
    const grey = [unfound && `${number(unfound)} not found by the search`,
      without && `${number(without)} without a number`].filter(Boolean).join(", ");
    legend.replaceChildren(
      make("p", {}, `Colour: place in the list, by ${name}; as many latents of each colour.`),
      ...(last < 0 ? [] : [make("div", { class: "scale" },
        make("div", { class: "swatches", "aria-hidden": "true" }, ...swatches),
        make("span", {}, `last: ${value(last)}`),
        make("span", {}, `middle: ${value(last >> 1)}`),
        make("span", {}, `first: ${value(0)}`))]),
      ...(grey ? [make("p", {}, swatch(GREY), `Grey: ${grey}.`)] : []));
  }

  function swatch(background) {
    const node = make("i", { class: "swatch", "aria-hidden": "true" });
    node.style.background = background;
    return node;
  }

  // All points, on a canvas of their own: drawn again only when what they say changes.
  function layer(canvas, at) {
    const ratio = devicePixelRatio || 1;
    const drawn = document.createElement("canvas");
    drawn.width = canvas.clientWidth * ratio;
    drawn.height = canvas.clientHeight * ratio;
    const pen = drawn.getContext("2d");
    pen.scale(ratio, ratio);
    const size = pointSize(at), steps = stepsOf(placedLatents());
    for (let step = -1; step < STEPS; step++) { // the grey ones below
      pen.fillStyle = color(canvas, step < 0 ? GREY : ink(step));
      steps.forEach((of, i) => { if (of === step) pen.fillRect(at.x[i], at.y[i], size, size); });
    }
    return drawn;
  }

  const pointSize = (at) => (at.x.length > 20000 ? 1.6 : at.x.length > 3000 ? 2.4 : 4);

  function draw(canvas, at, points, marked) {
    canvas.width = points.width; // and empty again
    canvas.height = points.height;
    const pen = canvas.getContext("2d");
    pen.drawImage(points, 0, 0);
    if (marked === null) return;
    const ratio = points.width / canvas.clientWidth, half = pointSize(at) / 2;
    pen.scale(ratio, ratio);
    pen.strokeStyle = color(canvas, "var(--text)");
    pen.lineWidth = 2;
    pen.beginPath();
    pen.arc(at.x[marked] + half, at.y[marked] + half, 7, 0, 7);
    pen.stroke();
  }

  // The nearest to a place; with a direction, the nearest within 45 degrees of it.
  function nearest(at, x, y, but, direction) {
    let best = null, least = Infinity;
    for (const i of viewer.found()) {
      if (i === but) continue;
      const dx = at.x[i] - x, dy = at.y[i] - y;
      const ahead = direction ? dx * direction[0] + dy * direction[1] : 1;
      const aside = direction ? Math.abs(dx * direction[1]) + Math.abs(dy * direction[0]) : 0;
      const far = dx * dx + dy * dy;
      if (ahead > 0 && aside <= ahead && far < least) [best, least] = [i, far];
    }
    return best;
  }

  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  viewer.map = (canvas, told, legend) => {
    let marked = null, at = null, points = null;
    const again = () => {
      if (!canvas.isConnected) return;
      explain(legend);
      if (!canvas.clientWidth) return;
      at = placed(canvas);
      points = layer(canvas, at);
      draw(canvas, at, points, marked);
    };
    const mark = (id) => {
      marked = id;
      const column = sorted() ?? viewer.columns[0];
      told.textContent = id === null ? "Point at a latent, or use the arrow keys."
        : `Latent ${id}: ${column.label} ${number(column.values[id])}, ${viewer.labels(id)}`;
      if (points) draw(canvas, at, points, marked);
    };
    const under = (event) => nearest(at, event.offsetX, event.offsetY, null, null);
    canvas.onpointermove = (event) => mark(under(event));
    canvas.onclick = (event) => { const id = under(event); if (id !== null) viewer.open(id); };
    canvas.onkeydown = (event) => {
      if (event.key === "Enter" && marked !== null) viewer.open(marked);
      if (!ARROWS[event.key]) return;
      event.preventDefault();
      const next = marked === null ? viewer.found()[0]
        : nearest(at, at.x[marked], at.y[marked], marked, ARROWS[event.key]);
      if (next !== null && next !== undefined) mark(next);
    };
    viewer.redraw = again;
    again();
    new ResizeObserver(again).observe(canvas);
    mark(null);
  };
})();

// Pages of one run's latents. Data files call viewer.site, .tokens, .contexts and .latents; every
// text from them becomes a text node, never markup. The address keeps what is looked at:
// #latent=12&find=war&sort=density&order=up
"use strict";

const viewer = (() => {
  const KEPT_CHUNKS = 48;
  const chunks = new Map(); // number -> latents, in the order of use
  const waiting = new Map(); // file -> {promise, resolve}
  const state = { latent: null, find: "", sort: "density", up: false };
  const it = { state, chunks };
  const $ = (id) => document.getElementById(id);

  // ---- Small things -------------------------------------------------------------------------
  function make(name, attributes = {}, ...children) {
    const svg = ["svg", "rect", "text", "line", "title"].includes(name);
    const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name)
      : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else node.setAttribute(key, value);
    }
    node.append(...children);
    return node;
  }

  function unpacked({ type, data }) {
    const raw = atob(data);
    const bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    const kinds = { Float32Array, Uint8Array, Uint16Array, Uint32Array };
    return new kinds[type](bytes.buffer);
  }

  // Four digits, as the data have them.
  function number(value) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    if (typeof value !== "number") return String(value);
    if (Number.isInteger(value)) return value.toLocaleString("en");
    return String(Number(value.toPrecision(4)));
  }

  const visible = (text) => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\r/g, "␍");
  const token = (id) => visible(it.tokenTexts[id] ?? `<${id}>`);

  // ---- Data ---------------------------------------------------------------------------------
  function load(name) {
    if (waiting.has(name)) return waiting.get(name).promise;
    const entry = {};
    entry.promise = new Promise((resolve, reject) => {
      entry.resolve = resolve;
      const file = `data/${name}.js`;
      const script = make("script", { src: file });
      script.onload = () => script.remove();
      script.onerror = () => {
        script.remove();
        waiting.delete(name);
        reject(new Error(`${file} cannot be read: is the whole folder there?`));
      };
      document.head.append(script);
    });
    waiting.set(name, entry);
    return entry.promise;
  }

  async function latent(id) {
    const chunk = Math.floor(id / it.about.chunk);
    if (!chunks.has(chunk)) await load(`latents_${String(chunk).padStart(4, "0")}`);
    const latents = chunks.get(chunk);
    chunks.delete(chunk);
    chunks.set(chunk, latents); // the newest of all
    while (chunks.size > KEPT_CHUNKS) chunks.delete(chunks.keys().next().value);
    return latents[id % it.about.chunk];
  }

  it.tokens = (texts) => { it.tokenTexts = texts; };
  it.contexts = (given) => {
    it.text = { ids: unpacked(given.ids), kept: unpacked(given.kept) };
    waiting.get("contexts").resolve();
  };
  it.latents = (chunk, given) => {
    chunks.set(chunk, given);
    const name = `latents_${String(chunk).padStart(4, "0")}`;
    const entry = waiting.get(name);
    waiting.delete(name); // it may be dropped, and asked for again
    entry.resolve();
  };
  it.site = (about) => {
    it.about = about;
    it.columns = about.columns.map((column) => ({ ...column, values: unpacked(column.values) }));
    for (const name of ["x", "y", "fires", "promotes"]) it[name] = unpacked(about[name]);
    start();
  };

  // ---- The address --------------------------------------------------------------------------
  function fromAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    const id = given.get("latent");
    const known = id !== null && /^\d+$/.test(id) && Number(id) < it.about.n_latents;
    state.latent = known ? Number(id) : null;
    state.find = given.get("find") ?? "";
    state.sort = it.columns.some((c) => c.key === given.get("sort")) ? given.get("sort")
      : given.get("sort") === "number" ? "number" : "density";
    state.up = given.get("order") === "up";
    const theme = given.get("theme");
    if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
  }

  function address(changes) {
    const next = { ...state, ...changes };
    const parts = new URLSearchParams();
    if (next.latent !== null) parts.set("latent", next.latent);
    if (next.find) parts.set("find", next.find);
    if (next.sort !== "density") parts.set("sort", next.sort);
    if (next.up) parts.set("order", "up");
    return `#${parts}`;
  }

  function open(id) { location.hash = address({ latent: id }); }

  function change(changes) {
    Object.assign(state, changes);
    history.replaceState(null, "", address({}));
  }

  // ---- Pages --------------------------------------------------------------------------------
  function link(id, ...more) {
    return make("a", { href: address({ latent: id }) }, `${id}`, ...more);
  }

  function tile({ label, about, on, values }, id) {
    return make("div", { class: "tile", title: about, "data-key": label },
      make("b", {}, number(values[id])), make("span", {}, label), make("small", {}, on));
  }

  function tokenTable(title, kind, rows) {
    const body = rows.map(([id, value]) => make("tr", {},
      make("td", { class: "token" }, token(id)),
      make("td", { class: `n ${kind}` }, (value > 0 ? "+" : "") + number(value))));
    return make("table", { id: title.toLowerCase() },
      make("thead", {}, make("tr", {}, make("th", { colspan: 2 }, title))),
      make("tbody", {}, ...body));
  }

  function bars(counts, titles, left, right, label) {
    const most = Math.log1p(Math.max(1, ...counts));
    const width = 300, height = 90, step = width / counts.length;
    const drawn = counts.map((count, i) => {
      const tall = height * Math.log1p(count) / most;
      return make("rect", { x: i * step + .5, y: height - tall + 8, width: step - 1, height: tall },
        make("title", {}, titles[i]));
    });
    const foot = height + 22;
    return make("svg", { viewBox: `0 0 ${width} ${foot + 4}`, role: "img", "aria-label": label },
      make("line", { x1: 0, x2: width, y1: height + 8.5, y2: height + 8.5 }), ...drawn,
      make("text", { x: 0, y: foot }, left),
      make("text", { x: width, y: foot, "text-anchor": "end" }, right));
  }

  function histogram(counts, largest) {
    const step = largest / counts.length;
    const titles = counts.map((count, i) =>
      `${number(count)} tokens from ${number(i * step)} to ${number((i + 1) * step)}`);
    return bars(counts, titles, "0", number(largest), `Tokens by activation: ${counts.join(", ")}`);
  }

  function example([context, positions, values], largest) {
    const { context: length } = it.about;
    const peak = Math.max(...values);
    const text = make("p", { class: "text" });
    let next = 0, plain = "";
    const flush = () => { if (plain) text.append(plain); plain = ""; };
    for (let at = 0; at < length; at++) {
      const place = context * length + at;
      const shown = token(it.text.ids[place]);
      if (positions[next] === at) {
        flush();
        const value = values[next++];
        const span = make("span", { class: value === peak ? "t peak" : "t",
          title: `${number(value)} at position ${at}` }, shown);
        span.style.setProperty("--h", (0.12 + 0.78 * value / largest).toFixed(3));
        text.append(span);
      } else if (!it.text.kept[place]) {
        flush();
        text.append(make("span", { class: "out", title: "no autoencoder is for this token" }, shown));
      } else plain += shown;
    }
    flush();
    return make("div", { class: "example", "data-context": context },
      make("span", { class: "n" }, number(peak)), text);
  }

  function examples(title, about, rows, largest) {
    return make("section", { "aria-label": title },
      make("h3", {}, title, " ", make("span", { class: "soft small" }, about)),
      ...(rows.length ? rows.map((row) => example(row, largest))
        : [make("p", { class: "soft" }, "None.")]));
  }

  function neighbourTable(rows) {
    return make("table", { id: "neighbours" }, make("tbody", {}, ...rows.map(([id, cosine]) =>
      make("tr", {}, make("td", { class: "n" }, link(id)),
        make("td", { class: "token" }, it.labels(id)),
        make("td", { class: "n" }, number(cosine))))));
  }

  // Tokens in reading order; null is any token.
  function patternList(patterns) {
    if (!patterns) return [];
    const rows = patterns.map(({ tokens, value, examples }) => make("tr", {},
      make("td", { class: "token wide" }, ...tokens.map((id) => (id === null
        ? make("span", { class: "any", title: "any token" }, "⋯") : token(id)))),
      make("td", { class: "n", title: "mean activation of the examples that gave it" },
        `${number(value)}, ${number(examples)}`)));
    const of = it.about.run.evaluation.find(({ metric }) => metric === "explain");
    return [make("h3", {}, "N-gram patterns ", make("span", { class: "soft small" },
      `mean activation, examples${of ? `; ${of.contexts}` : ""}`)),
      make("table", { id: "patterns" }, make("tbody", {}, ...rows))];
  }

  function aside(of, largest) {
    const { factor, length, has_final_norm } = it.about;
    const norm = has_final_norm ? `, final norm ${number(length)}` : "";
    return make("div", {},
      make("h3", {}, "Activations"),
      ...(largest > 0 ? [histogram(of.histogram, largest),
        make("p", { class: "soft small" }, "Tokens by activation; heights are logarithmic.")]
        : [make("p", { class: "soft" }, "It is active nowhere in this text.")]),
      ...patternList(of.patterns),
      make("h3", {}, "Logits it adds"),
      make("div", { class: "pair" }, tokenTable("Promotes", "up", of.promoted),
        tokenTable("Suppresses", "down", of.suppressed)),
      make("p", { class: "soft small" }, "At activation 1, through the final norm alone, less the "
        + `mean of all tokens; median scales: residual stream ${number(factor)}${norm}.`),
      make("h3", {}, "Neighbours ", make("span", { class: "soft small" }, "cosine of decoder rows")),
      neighbourTable(of.neighbours));
  }

  async function showLatent(id) {
    const main = $("main");
    try {
      const [of] = await Promise.all([latent(id), load("contexts")]);
      if (state.latent !== id) return; // another was asked for meanwhile
      const value = (key) => it.columns.find((c) => c.key === key).values[id];
      const tiles = it.columns.filter((c) => !Number.isNaN(c.values[id]))
        .map((c) => tile(c, id));
      main.replaceChildren(
        make("div", { class: "head" }, make("h2", {}, `Latent ${id}`),
          make("button", { type: "button", onclick: () => it.step(-1) }, "Previous ", make("kbd", {}, "k")),
          make("button", { type: "button", onclick: () => it.step(1) }, "Next ", make("kbd", {}, "j"))),
        make("div", { class: "tiles" }, ...tiles),
        make("div", { class: "columns" },
          make("div", {},
            examples("Top examples", "largest activation within a context", of.top, value("largest")),
            examples("Random examples", "drawn from all other contexts it is active in", of.random,
              value("largest"))),
          aside(of, value("largest"))));
      main.scrollTop = 0;
      document.title = `Latent ${id} – ${it.about.run.title}`;
    } catch (error) {
      main.replaceChildren(make("p", { class: "bad", role: "alert" }, error.message));
    }
  }

  function densityBars() {
    const { values } = it.columns.find((c) => c.key === "density");
    const lowest = Math.floor(Math.log10(1 / it.about.n_tokens)), n = 24;
    const counts = new Array(n).fill(0);
    let silent = 0;
    for (const density of values) {
      if (density > 0) counts[Math.min(n - 1, Math.max(0, Math.floor(
        n * (1 - Math.log10(density) / lowest))))]++;
      else silent++;
    }
    const at = (i) => number(10 ** (lowest * (1 - i / n)));
    const titles = counts.map((count, i) => `${number(count)} latents from ${at(i)} to ${at(i + 1)}`);
    return [make("h3", {}, "Latents by density ", make("span", { class: "soft small" },
      `both axes logarithmic; ${number(silent)} are active nowhere in this text`)),
    bars(counts, titles, at(0), "1", `Latents by density: ${counts.join(", ")}`)];
  }

  // Groups of numbers, each under what it was measured on: side by side they may not compare.
  function facts(title, groups) {
    const bodies = groups.map(({ on, rows }) => make("tbody", {},
      make("tr", {}, make("th", { colspan: 2, scope: "rowgroup" }, on)),
      ...rows.map(({ name, value, error, beside }) => make("tr", {},
        make("td", {}, name, ...beside.map((text) => make("div", { class: "soft small" }, text))),
        make("td", { class: "n" }, number(value),
          ...(error ? [make("div", { class: "soft small" }, `± ${+error.toPrecision(2)}`)] : []))))));
    if (!bodies.length) return [];
    const errors = groups.some(({ rows }) => rows.some(({ error }) => error))
      ? "; ± one standard error of what was drawn" : "";
    return [make("div", {},
      make("h3", {}, title, " ",
      make("span", { class: "soft small" }, `by what it was measured on${errors}`)),
      make("table", { "data-facts": title }, ...bodies))];
  }

  // Metrics that were measured on the same are one group.
  function joined(metrics) {
    const groups = new Map();
    for (const { on, numbers, errors = {}, baselines = {} } of metrics) {
      const rows = Object.entries(numbers).map(([name, value]) => ({
        name, value, error: errors[name],
        beside: Object.entries(baselines[name] ?? {}).map(([of, it]) => `${of}: ${number(it)}`),
      }));
      groups.set(on, [...(groups.get(on) ?? []), ...rows]);
    }
    return [...groups].map(([on, rows]) => ({ on, rows }));
  }

  function showOverview() {
    const { run, n_tokens, n_contexts, plane } = it.about;
    const canvas = make("canvas", { id: "map", tabindex: 0, role: "application",
      "aria-describedby": "legend",
      "aria-label": "Map of the latents: arrows move to the next one, Enter opens it" });
    const told = make("p", { id: "told", class: "small", role: "status" });
    const legend = make("div", { id: "legend", class: "small" });
    $("main").replaceChildren(
      make("h2", {}, "Overview"),
      make("p", { class: "soft" }, `${number(it.about.n_latents)} latents on ${number(n_tokens)} tokens `
        + `of ${number(n_contexts)} held-out contexts${run.text ? ` of ${run.text}` : ""}.`),
      make("h3", {}, "Map of the decoder ", make("span", { class: "soft small" }, plane)),
      canvas, told, legend,
      ...densityBars(),
      make("div", { class: "lists" },
        ...facts("Evaluation", joined(run.evaluation)), ...facts("Record", joined(run.record))));
    it.map(canvas, told, legend);
    document.title = run.title;
  }

  function show() {
    fromAddress();
    it.showList();
    if (state.latent === null) showOverview();
    else showLatent(state.latent);
  }

  // ---- Keys and buttons ---------------------------------------------------------------------
  function random() {
    const among = it.found();
    if (among.length) open(among[Math.floor(Math.random() * among.length)]);
  }

  const KEYS = {
    "/": () => { $("find").focus(); $("find").select(); },
    j: () => it.step(1), k: () => it.step(-1), r: random,
    o: () => open(null), "?": () => $("help").showModal(),
  };

  function onKey(event) {
    const typing = event.target.closest("input, select, textarea, dialog");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
    event.preventDefault();
    KEYS[event.key]();
  }

  function nextTheme() {
    const dark = getComputedStyle(document.documentElement).getPropertyValue("color-scheme") === "dark"
      || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
    document.documentElement.dataset.theme = dark ? "light" : "dark";
    it.redraw?.();
  }

  function start() {
    const { run } = it.about;
    $("title").textContent = run.title;
    $("subtitle").textContent = `${run.sweep} / ${run.run_id}, ${run.weights} weights`;
    $("overview").onclick = () => open(null);
    $("random").onclick = random;
    $("theme").onclick = nextTheme;
    $("keys").onclick = () => $("help").showModal();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => it.redraw?.());
    addEventListener("hashchange", show);
    addEventListener("keydown", onKey);
    it.startList();
    show();
  }

  return Object.assign(it, { make, number, token, open, change, $ });
})();

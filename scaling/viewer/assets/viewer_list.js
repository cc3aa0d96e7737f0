// The list of all latents: found, sorted, and drawn only where it is in view.
"use strict";

(() => {
  const { $, make, state, number, token } = viewer;
  const ROW = 44;
  const orders = new Map(); // column -> latents ascending, and those without a value
  let found = [], at = -1, shown = "", lowered = null;

  function values(key) {
    return viewer.columns.find((column) => column.key === key)?.values ?? null;
  }

  // Ascending, equal ones by number; and those without a value, which are left for the end.
  function order(key) {
    if (!orders.has(key)) {
      const by = values(key);
      const all = Uint32Array.from({ length: viewer.about.n_latents }, (_, i) => i);
      // Not all at once: a difference from NaN is NaN, and puts the others out of order too.
      const lacks = (id) => by !== null && Number.isNaN(by[id]);
      const known = all.filter((id) => !lacks(id));
      if (by) known.sort((a, b) => by[a] - by[b] || a - b);
      orders.set(key, [known, all.filter(lacks)]);
    }
    return orders.get(key);
  }

  function ordered() {
    const [known, without] = order(state.sort);
    const up = state.sort === "number" ? !state.up : state.up;
    return [...(up ? known : known.slice().reverse()), ...without];
  }

  // By number, or where a token it fires on or promotes has the text; "text" in quotes is the whole.
  function matching(text) {
    const wanted = text.trim().toLowerCase();
    if (!wanted) return () => true;
    lowered ??= viewer.tokenTexts.map((one) => one.toLowerCase());
    const whole = /^"(.+)"$/.exec(wanted)?.[1];
    const hits = Uint8Array.from(lowered, (one) =>
      (whole ? one.trim() === whole : one.includes(wanted)) ? 1 : 0);
    const { n_fires, n_promotes } = viewer.about;
    const has = (tokens, n, id) => {
      for (let i = id * n; i < (id + 1) * n; i++) if (hits[tokens[i]]) return true;
      return false;
    };
    return (id) => String(id) === wanted.replace(/^#/, "")
      || has(viewer.fires, n_fires, id) || has(viewer.promotes, n_promotes, id);
  }

  function several(tokens, n, id) {
    return [...tokens.subarray(id * n, (id + 1) * n)].filter((one) => one !== viewer.about.no_token)
      .map((one) => token(one).trim() || "␠");
  }

  viewer.labels = (id) => {
    const { n_fires, n_promotes } = viewer.about;
    const fires = several(viewer.fires, n_fires, id).slice(0, 3).join(" ");
    return `${fires || "–"} → ${several(viewer.promotes, n_promotes, id).slice(0, 3).join(" ")}`;
  };

  function row(place) {
    const id = found[place];
    const by = values(state.sort) ?? values("density");
    return make("div", { class: "row", role: "option", id: `row${id}`,
      "aria-selected": id === state.latent, "aria-posinset": place + 1, "aria-setsize": found.length,
      onclick: () => viewer.open(id), "data-at": place },
    make("div", {}, make("b", { class: "n" }, `${id}`), make("span", { class: "n" }, number(by[id]))),
    make("span", { class: "labels" }, viewer.labels(id)));
  }

  function draw() {
    const list = $("list"), rows = $("rows");
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
    const last = Math.min(found.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 4);
    const drawn = [];
    for (let place = first; place < last; place++) {
      const node = row(place);
      node.style.top = `${place * ROW}px`;
      drawn.push(node);
    }
    rows.replaceChildren(...drawn);
    if (at >= first && at < last) list.setAttribute("aria-activedescendant", `row${found[at]}`);
    else list.removeAttribute("aria-activedescendant");
  }

  function intoView() {
    const list = $("list");
    if (at < 0) return;
    if (at * ROW < list.scrollTop) list.scrollTop = at * ROW;
    else if ((at + 1) * ROW > list.scrollTop + list.clientHeight) {
      list.scrollTop = (at + 1) * ROW - list.clientHeight;
    }
  }

  viewer.found = () => found;

  viewer.showList = () => {
    const key = JSON.stringify([state.find, state.sort, state.up]);
    if (key !== shown) {
      shown = key;
      found = ordered().filter(matching(state.find));
      $("list").scrollTop = 0;
      $("found").textContent = `${number(found.length)} of ${number(viewer.about.n_latents)} latents`;
      if ($("find").value !== state.find) $("find").value = state.find;
      $("sort").value = state.sort;
      $("direction").textContent = (state.sort === "number" ? !state.up : state.up) ? "↑" : "↓";
    }
    at = state.latent === null ? -1 : found.indexOf(state.latent);
    $("rows").style.height = `${found.length * ROW}px`; // or it could not be scrolled to
    intoView();
    draw();
  };

  viewer.step = (by) => {
    if (!found.length) return;
    const next = at < 0 ? 0 : Math.min(found.length - 1, Math.max(0, at + by));
    viewer.open(found[next]);
  };

  const STEPS = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };

  function changed(changes) {
    viewer.change(changes);
    viewer.showList();
    viewer.redraw?.();
  }

  viewer.startList = () => {
    $("sort").replaceChildren(
      ...viewer.columns.map(({ key, label }) => make("option", { value: key }, `by ${label}`)),
      make("option", { value: "number" }, "by number"));
    $("sort").onchange = (event) => changed({ sort: event.target.value, up: false });
    $("direction").onclick = () => changed({ up: !state.up });
    $("find").oninput = (event) => changed({ find: event.target.value });
    $("find").onkeydown = (event) => {
      if (event.key === "Escape") { event.target.value = ""; changed({ find: "" }); }
      else if (event.key === "Enter" && found.length) { viewer.open(found[0]); $("list").focus(); }
      else if (event.key === "ArrowDown") { event.preventDefault(); $("list").focus(); }
    };
    $("list").onscroll = () => requestAnimationFrame(draw);
    $("list").onkeydown = (event) => {
      if (!(event.key in STEPS)) return;
      event.preventDefault();
      viewer.step(STEPS[event.key]);
    };
    addEventListener("resize", draw);
  };
})();

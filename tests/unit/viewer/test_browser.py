"""The pages in a browser, opened from the disk: what they show, by keys alone, and nothing that the
text would have them do. All in one visit, since a browser takes seconds to start."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling import run_weights
from scaling.evaluate_material import material_of
from scaling.evaluation.screen import Screen
from scaling.runs.store import RunFolder
from scaling.view import _options
from scaling.viewer.look import Column, Known, Sizes, look_at
from scaling.viewer.site import write_site
from tests.unit.viewer import pages

EVIL = (
    "</script><script>document.body.id='ran'</script><img src=x onerror=\"document.body.id='ran'\">"
)
DRIVER = """
const seen = {errors: []};
addEventListener("error", (event) => seen.errors.push(event.message));
const all = (selector) => [...document.querySelectorAll(selector)];
const texts = (selector) => all(selector).map((node) => node.textContent);
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const key = (on, key) => on.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
const page = () => ({
  head: texts("h2")[0], hash: location.hash, found: texts("#found")[0],
  first: texts(".row b")[0], listed: texts(".row b").slice(0, 5),
  selected: texts('.row[aria-selected="true"] b')[0] ?? null,
  rows: all(".row").length,
  tiles: Object.fromEntries(all(".tile").map((t) => [t.dataset.key, t.children[0].textContent])),
  examples: all(".example").length, peaks: texts(".example .n"), text: texts(".text"),
  heat: all(".t").map((t) => t.title.split(" ")[0]),
  promotes: texts("#promotes tbody td"), neighbours: texts("#neighbours a"),
  legend: texts("#legend p, #legend .scale span"), facts: texts("[data-facts] tbody th"),
  cells: texts("[data-facts] tbody td"),
  inks: all("#legend .swatches i").map((node) => getComputedStyle(node).backgroundColor),
  on: Object.fromEntries(all(".tile").map((t) => [t.dataset.key, t.children[2].textContent])),
  scripts: all("img, main script").length, ran: document.body.id,
});
addEventListener("load", async () => {
  const find = document.getElementById("find");
  const step = async (name, act) => { act(); await wait(250); seen[name] = page(); };
  await step("overview", () => {});
  await step("opened", () => { location.hash = "#latent=LATENT"; });
  await step("far", () => { location.hash = "#latent=FAR"; });
  await step("near", () => { location.hash = "#latent=LATENT"; });
  await step("next", () => key(document.body, "j"));
  await step("typed", () => {
    key(document.body, "/"); seen.focus = document.activeElement.id;
    find.value = "299"; find.dispatchEvent(new Event("input")); });
  await step("entered", () => key(find, "Enter"));
  await step("by_token", () => {
    find.value = "onerror"; find.dispatchEvent(new Event("input")); });
  await step("by_number", () => { location.hash = "#sort=number"; });
  await step("mapped", () => {
    const map = document.getElementById("map");
    for (const name of ["ArrowRight", "ArrowDown", "ArrowLeft"]) key(map, name);
    seen.told = texts("#told")[0]; key(map, "Enter"); });
  await step("by_partial", () => { location.hash = "#sort=partial"; });
  await step("partly_found", () => {
    find.value = "299"; find.dispatchEvent(new Event("input")); });
  const map = document.getElementById("map"), picture = map.toDataURL();
  seen.describes = map.getAttribute("aria-describedby");
  await step("other_theme", () => document.getElementById("theme").click());
  seen.redrawn = map.isConnected && map.toDataURL() !== picture;
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = JSON.stringify(seen);
  document.body.append(result);
});
"""


def evil_site(finished: RunFolder, folder: Path) -> None:
    """Of a run whose every second token and whose title are markup."""
    material = material_of(run_weights.plan_of(finished), _options([]))
    partial_N = np.where(np.arange(300) % 3 == 0, np.nan, np.arange(300) * 7 % 300)
    partial = Column("partial", EVIL, EVIL, partial_N, "4 contexts")
    known = Known([partial])
    made = look_at(run_weights.load_run(finished), material, known, Sizes(), Screen().metric)
    tokens = [EVIL if number % 2 else text for number, text in enumerate(made.tokens)]
    run: dict[str, Any] = {
        "run_id": "r",
        "sweep": EVIL,
        "title": EVIL,
        "weights": "raw",
        "text": EVIL,
    }
    evaluation = [
        {"metric": "a", "on": "4 contexts", "numbers": {EVIL: 1}},
        {"metric": "b", "on": EVIL, "numbers": {"b": 1}},
        {
            **{"metric": "c", "on": "4 contexts", "numbers": {"c": 1, "d": 3}},
            **{"errors": {"c": 0.0123456}, "baselines": {"c": {EVIL: 2}}},
        },
    ]
    run |= {"record": [], "evaluation": evaluation}
    write_site(folder, replace(made, tokens=tokens), run, "id")


@pytest.fixture(scope="module")
def visited(
    wide_run: RunFolder, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int, dict[str, Any]]:
    """The site, a busy latent, and what the browser saw."""
    tmp_path = tmp_path_factory.mktemp("visited")
    site = tmp_path / "site"
    evil_site(wide_run, site)
    density = pages.columns(site)["density"]
    latent, far = int(density.argmax()), int(density.argmin())
    driver = DRIVER.replace("LATENT", str(latent)).replace("FAR", str(far))
    (site / "driver.js").write_text(driver)
    index = site / "index.html"
    driven = index.read_text().replace("</body>", '<script src="driver.js"></script></body>')
    index.write_text(driven)
    shown = pages.dom(index.as_uri(), tmp_path / "profile")
    result = re.search(r'<pre id="result">(.*?)</pre>', shown, re.DOTALL)
    assert result is not None, shown[-3000:]
    return site, latent, json.loads(html.unescape(result[1]))


def steps_of(seen: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for step in seen.values() if isinstance(step, dict)]


def test_a_visit(visited: tuple[Path, int, dict[str, Any]]) -> None:
    site, latent, seen = visited
    assert seen["errors"] == []
    steps = steps_of(seen)
    assert [step["scripts"] for step in steps] == [0] * 13  # no text became markup
    assert [step["ran"] for step in steps] == [""] * 13
    assert all("<" not in path.read_text() for path in (site / "data").iterdir())
    assert EVIL in "".join(seen["opened"]["text"])
    columns, data = pages.columns(site), pages.latents(site)
    assert seen["overview"]["head"] == "Overview"
    by_density = sorted(range(300), key=lambda i: (-columns["density"][i], -i))
    assert seen["overview"]["first"] == str(by_density[0]) == str(latent)
    assert 5 < seen["overview"]["rows"] < 60  # of 300: those in view
    opened, shown = seen["opened"], data[latent]
    assert opened["head"] == f"Latent {latent}"
    tiles = {label: float(text.replace(",", "")) for label, text in opened["tiles"].items()}
    for label, key in (("density", "density"), ("mean activation", "mean")):
        assert tiles[label] == pytest.approx(columns[key][latent], rel=1e-3)
    assert tiles["active tokens"] == columns["active"][latent]
    examples = shown["top"] + shown["random"]
    assert opened["examples"] == len(examples) == 20
    assert [float(peak) for peak in opened["peaks"]] == [max(values) for _, _, values in examples]
    heat = [value for _, _, values in examples for value in values]
    assert [float(text) for text in opened["heat"]] == heat
    assert [float(text) for text in opened["promotes"][1::2]] == [v for _, v in shown["promoted"]]
    assert opened["neighbours"] == [str(number) for number, _ in shown["neighbours"]]


def test_by_keys_alone(visited: tuple[Path, int, dict[str, Any]]) -> None:
    site, _, seen = visited
    columns = pages.columns(site)
    by_density = sorted(range(300), key=lambda i: (-columns["density"][i], -i))
    assert seen["far"]["selected"] == str(by_density[-1])  # scrolled to, and drawn
    assert seen["next"]["head"] == f"Latent {by_density[1]}"
    assert seen["next"]["selected"] == str(by_density[1])
    assert seen["focus"] == "find"
    assert seen["typed"]["found"] == "1 of 300 latents"
    assert seen["entered"]["head"] == "Latent 299"  # of the second chunk
    fires = pages.unpacked(pages.about(site)["fires"]).reshape(300, -1)
    promotes = pages.unpacked(pages.about(site)["promotes"]).reshape(300, -1)
    none = pages.about(site)["no_token"]
    odd = ((fires % 2 == 1) & (fires != none)).any(1) | (promotes % 2 == 1).any(1)
    assert seen["by_token"]["found"] == f"{odd.sum()} of 300 latents"
    assert seen["by_number"]["first"] == "0"
    told = re.match(r"Latent (\d+):", seen["told"])
    assert told is not None
    assert seen["mapped"]["head"] == f"Latent {told[1]}"


def test_the_map_says_what_its_colors_mean(visited: tuple[Path, int, dict[str, Any]]) -> None:
    site, _, seen = visited
    density = np.sort(pages.columns(site)["density"])[::-1]
    about, *scale = seen["overview"]["legend"]
    n_contexts = pages.about(site)["n_contexts"]
    assert f"place in the list, by density ({n_contexts} contexts)" in about
    numbers = {word: float(number) for word, number in (text.split(": ") for text in scale)}
    ends = {"last": density[-1], "middle": density[149], "first": density[0]}
    assert numbers == pytest.approx(ends, rel=1e-3)
    assert len(set(seen["overview"]["inks"])) == 8
    # A third has no such number, and ends the list: it is no low one.
    *_, middle, first, grey = seen["by_partial"]["legend"]
    assert (middle, first, grey) == ("middle: 151", "first: 299", "Grey: 100 without a number.")
    by_partial = sorted((i for i in range(300) if i % 3), key=lambda i: -(i * 7 % 300))
    assert seen["by_partial"]["listed"] == [str(i) for i in by_partial[:5]]
    assert seen["partly_found"]["legend"][1:] == [
        "last: 293", "middle: 293", "first: 293", "Grey: 299 not found by the search.",
    ]  # fmt: skip
    assert seen["describes"] == "legend"
    assert seen["redrawn"]
    assert not set(seen["other_theme"]["inks"]) & set(seen["partly_found"]["inks"])


def test_numbers_stand_under_what_they_were_measured_on(
    visited: tuple[Path, int, dict[str, Any]],
) -> None:
    site, _, seen = visited
    assert seen["overview"]["facts"] == ["4 contexts", EVIL]  # each once
    with_error = [f"c{EVIL}: 2", "1± 0.012", "d", "3"]  # each has its own
    assert seen["overview"]["cells"] == [EVIL, "1", *with_error, "b", "1"]
    n_contexts = pages.about(site)["n_contexts"]
    assert seen["next"]["on"]["density"] == f"{n_contexts} contexts"
    partial = [step["on"][EVIL] for step in steps_of(seen) if EVIL in step["on"]]
    assert set(partial) == {"4 contexts"}

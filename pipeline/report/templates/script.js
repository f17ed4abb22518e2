"use strict";

// --- tables sort, by click or by keyboard: the headers are buttons ------------------------------

function sortBy(head) {
  const body = head.closest("table").tBodies[0];
  const numeric = !head.classList.contains("text");
  const before = head.getAttribute("aria-sort");
  const up = before ? before === "descending" : !numeric;
  const keyed = [...body.rows].map((row) => [row.cells[head.cellIndex].dataset.order, row]);
  keyed.sort(([a], [b]) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const order = numeric ? Number(a) - Number(b) : a < b ? -1 : Number(a > b);
    return up ? order : -order;
  });
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  body.append(...keyed.map(([, row]) => row));
}

document.addEventListener("click", (event) => {
  const head = event.target.closest("thead th");
  if (head) sortBy(head);
});

// --- explanations that appear on hover and on focus ---------------------------------------------

const tip = document.getElementById("tip");
let told = null;

function showTip(element) {
  hideTip();
  told = element;
  (element.closest("dialog") ?? document.body).append(tip);
  tip.textContent = element.dataset.tip;
  tip.hidden = false;
  element.setAttribute("aria-describedby", "tip");
  const at = element.getBoundingClientRect();
  const left = Math.min(at.left, innerWidth - tip.offsetWidth - 8);
  const above = at.top - tip.offsetHeight - 6;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${above > 4 ? above : at.bottom + 6}px`;
}

function hideTip() {
  told?.removeAttribute("aria-describedby");
  told = null;
  tip.hidden = true;
}

for (const kind of ["pointerover", "focusin"]) {
  document.addEventListener(kind, (event) => {
    const element = event.target.closest?.("[data-tip]");
    if (element) showTip(element);
    else if (kind === "pointerover") hideTip();
  });
}
document.addEventListener("focusout", hideTip);
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || tip.hidden) return;
  hideTip();
});
addEventListener("scroll", hideTip, { passive: true, capture: true });

// --- print: everything folded is opened ---------------------------------------------------------

let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("main details:not([open], .recipe)")];
  for (const details of opened) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of opened) details.open = false;
});
if (matchMedia("(max-width: 70rem)").matches) {
  document.querySelector(".contents details").open = false;
}

// --- examples -----------------------------------------------------------------------------------

const stored = document.getElementById("gallery-data");
if (stored) startGallery(JSON.parse(stored.textContent));

function startGallery({ methods, metrics, examples, images, ramps }) {
  const dialog = document.getElementById("example");
  const unpacked = new Map();
  let scale = "shared";
  let sequence = [];
  let position = 0;

  // Elements are made with textContent alone: questions and answers are anybody's text.
  function make(name, properties = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(properties)) {
      if (key in element) element[key] = value;
      else element.setAttribute(key, value);
    }
    element.append(...children);
    return element;
  }

  function percent(value) {
    return value === null ? "–" : `${(100 * value).toFixed(1)}%`;
  }

  function number(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size === 0) return "0";
    const text = size < 0.001 ? value.toExponential(1) : value.toPrecision(3);
    return text.replaceAll("-", "−");
  }

  function decimals(value) {
    return value.toFixed(2).replace(/^-(?=0\.00$)/, "").replace("-", "−");
  }

  // A map is a byte a place; all maps of an example lie one after the other, deflated.
  async function bytes(index) {
    if (!unpacked.has(index)) {
      const text = document.getElementById(`maps-${index}`).textContent;
      const packed = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
      const inflate = new DecompressionStream("deflate-raw");
      const stream = new Blob([packed]).stream().pipeThrough(inflate);
      unpacked.set(index, new Uint8Array(await new Response(stream).arrayBuffer()));
    }
    return unpacked.get(index);
  }

  function colour(ramp, place) {
    const at = Math.min(1, Math.max(0, place)) * (ramp.length - 1);
    const low = Math.min(ramp.length - 2, Math.floor(at));
    return ramp[low].map((from, i) => from + (at - low) * (ramp[low + 1][i] - from));
  }

  function paint(canvas, map, data, limit) {
    const { signed } = methods[map.method];
    const context = canvas.getContext("2d");
    const image = context.createImageData(map.width, map.height);
    for (let i = 0; i < map.width * map.height; i++) {
      const byte = data[map.at + i];
      const share = signed ? ((byte << 24) >> 24) / 127 : byte / 255;
      const strength = Math.max(-1, Math.min(1, (share * map.top) / (limit || 1)));
      const [red, green, blue] = signed
        ? colour(ramps.signed, (strength + 1) / 2)
        : colour(ramps.unsigned, strength);
      const opacity = signed ? 0.15 + 0.8 * Math.abs(strength) : 0.12 + 0.83 * strength;
      image.data.set([red, green, blue, 255 * opacity], 4 * i);
    }
    context.putImageData(image, 0, 0);
  }

  // The magnitude at which a map's colour is full.
  function limits(maps) {
    const drawn = maps.filter((map) => map.width);
    const unit = (map) => methods[map.method].unit || methods[map.method].name;
    const peaks = drawn.map((m) => (m.mean ? m.top / m.mean : 0)).sort((a, b) => a - b);
    const concentration = Math.max(1, peaks[Math.floor(peaks.length / 2)] ?? 1);
    const largest = new Map();
    for (const map of drawn) {
      largest.set(unit(map), Math.max(largest.get(unit(map)) ?? 0, map.top));
    }
    const of = {
      shared: (map) => concentration * map.mean,
      raw: (map) => largest.get(unit(map)),
      own: (map) => map.top,
    };
    const texts = {
      shared: `Full colour from ${number(concentration)} times a map's own mean magnitude (the median peak of these maps).`,
      raw: `Full colour at ${[...largest].map(([u, v]) => `${u} ${number(v)}`).join(", ")}.`,
      own: "Full colour at each map's largest magnitude.",
    };
    return { of, texts };
  }

  function picture(example, fallback) {
    const image = images[example.image];
    if (!image.source) return make("span", { className: "nothing" }, fallback);
    return make("img", { src: image.source, width: image.width, height: image.height, alt: "" });
  }

  function agreement(example, map) {
    const target = methods[map.method].name === "human" ? "human" : map.target;
    if (map.of && !map.of.startsWith("mean")) return [];
    return metrics
      .map((metric, i) => [metric, example.scores[`${map.method}:${target}:${i}`]])
      .filter(([, value]) => value !== undefined);
  }

  function caption(example, map, short) {
    const method = methods[map.method];
    const name = make("span", { className: method.baseline ? "name baseline" : "name" }, map.of ? `human, ${map.of}` : method.name.replaceAll("_", " "));
    const lines = [name];
    const values = agreement(example, map);
    if (values.length) {
      const text = values.map(([metric, value]) => `${metric}: ${number(value)}`).join("; ");
      const first = (short ? "" : `${values[0][0].replaceAll("_", " ")} `) + decimals(values[0][1]);
      lines.push(make("span", { className: "score", tabIndex: short ? -1 : 0, "data-tip": text }, first));
    }
    if (short) return lines;
    for (const badge of method.badges) {
      const kind = badge.good === null ? "open" : badge.good ? "good" : "bad";
      lines.push(make("span", { className: `badge ${kind}`, tabIndex: 0, "data-tip": badge.why }, badge.word));
    }
    if (map.ends) {
      const unit = method.unit ? ` (${method.unit})` : "";
      lines.push(make("span", { className: "muted" }, `${number(map.ends[0])} to ${number(map.ends[1])}${unit}`));
    }
    return lines;
  }

  function tile(example, map, data, limit, short) {
    const kind = methods[map.method].signed ? "signed" : "unsigned";
    const stack = make("div", { className: `stack ${kind}` }, picture(example, ""));
    if (map.width) {
      const canvas = make("canvas", { width: map.width, height: map.height });
      paint(canvas, map, data, limit);
      stack.append(canvas);
    }
    const figure = make("figure", { className: "tile" }, stack);
    const text = make("figcaption", {}, ...caption(example, map, short));
    if (map.status !== "ok") {
      text.append(make("span", { className: "why" }, `${map.status}: ${map.why}`));
    }
    figure.append(text);
    return figure;
  }

  // --- an example, opened ------------------------------------------------------------------

  function facts(example) {
    const rows = [["Model's answer", `${example.prediction} (${percent(example.confidence)} sure)`]];
    if (example.truth !== null) {
      const same = example.correct ? "the same" : example.truth;
      const unknown = example.known === false ? ", which the model cannot give" : "";
      rows.push(["Labelled answer", same + unknown]);
    }
    if (example.answers.length) {
      const people = example.answers.map(([answer, n]) => (n > 1 ? `${answer} × ${n}` : answer));
      rows.push(["People's answers", people.join(", ")]);
    }
    if (example.accuracy !== null) rows.push(["VQA accuracy", percent(example.accuracy)]);
    rows.push(["Question", `number ${example.id}`]);
    return rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)));
  }

  function wordRow(example, words) {
    const method = methods[words.method];
    const label = make("span", { className: "name" }, `${method.name}, ${words.target}`);
    if (!words.values) return make("p", {}, label, ` – ${words.why}`);
    const most = Math.max(...words.values.map(Math.abs)) || 1;
    const spans = example.tokens.map((token, i) => {
      const value = words.values[i];
      // Neither end of the ramp: the text stays legible on it in both colour schemes.
      const [red, green, blue] = colour(ramps.signed, value < 0 ? 0.2 : 0.8);
      const strength = 0.55 * Math.abs(value / most);
      const word = make("span", { className: "word", tabIndex: 0, "data-tip": `${token}: ${number(value)} (${method.unit})` }, token);
      word.style.backgroundColor = `rgb(${red} ${green} ${blue} / ${strength})`;
      return word;
    });
    return make("p", {}, label, ...spans);
  }

  function groups(example) {
    const own = (target) => example.maps.filter((map) => map.target === target);
    const titles = [
      ["predicted", `Why “${example.prediction}”? (the model's answer)`],
      ["truth", `Why “${example.truth}”? (the labelled answer)`],
      ["human", "Where people looked"],
    ];
    return titles.map(([target, title]) => [title, own(target)]).filter(([, maps]) => maps.length);
  }

  async function draw() {
    const index = sequence[position];
    const example = examples[index];
    const data = await bytes(index);
    if (sequence[position] !== index) return;
    const { of, texts } = limits(example.maps);
    dialog.querySelector(".range").textContent = texts[scale];
    const sections = groups(example).map(([title, maps]) => {
      const tiles = maps.map((map) => tile(example, map, data, of[scale](map), false));
      return make("section", {}, make("h3", {}, title), make("div", { className: "tiles" }, ...tiles));
    });
    dialog.querySelector(".groups").replaceChildren(...sections);
  }

  function fill() {
    const example = examples[sequence[position]];
    dialog.querySelector("#example-question").textContent = example.question;
    dialog.querySelector(".place").textContent = `Example ${position + 1} of ${sequence.length}`;
    dialog.querySelector(".seen").replaceChildren(picture(example, "no picture"));
    dialog.querySelector("dl").replaceChildren(...facts(example));
    const words = example.words.map((own) => wordRow(example, own));
    dialog.querySelector(".words").replaceChildren(...words);
    dialog.querySelector("[data-step='-1']").disabled = position === 0;
    dialog.querySelector("[data-step='1']").disabled = position === sequence.length - 1;
    return draw();
  }

  function step(by) {
    const next = position + by;
    if (next < 0 || next >= sequence.length) return;
    position = next;
    hideTip();
    fill();
    dialog.scrollTop = 0;
  }

  function open(button) {
    const list = button.closest("[data-panel], .thumbs");
    const shown = [...list.querySelectorAll("[data-example]")].filter((b) => !b.closest("[hidden]"));
    sequence = shown.map((b) => Number(b.dataset.example));
    position = shown.indexOf(button);
    fill();
    dialog.showModal();
    dialog.scrollTop = 0;
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-example]");
    if (button) open(button);
  });
  dialog.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (event.target === dialog || button?.hasAttribute("data-close")) dialog.close();
    else if (button?.dataset.step) step(Number(button.dataset.step));
    else if (button?.dataset.scale) {
      scale = button.dataset.scale;
      for (const other of dialog.querySelectorAll("[data-scale]")) {
        other.setAttribute("aria-pressed", String(other === button));
      }
      draw();
    }
  });
  dialog.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    step(by);
  });
  dialog.addEventListener("close", hideTip);

  // --- thumbnails ---------------------------------------------------------------------------

  const form = document.querySelector(".filters");
  function filter() {
    const wanted = Object.fromEntries(new FormData(form));
    const words = wanted.text.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const item of document.querySelectorAll(".thumbs > li")) {
      const { outcome, sureness, example } = item.firstElementChild.dataset;
      const { question, prediction, truth } = examples[Number(example)];
      const text = `${question} ${prediction} ${truth}`.toLowerCase();
      item.hidden = !(
        (!wanted.outcome || wanted.outcome === outcome) &&
        (!wanted.sureness || wanted.sureness === sureness) &&
        words.every((word) => text.includes(word))
      );
      shown += !item.hidden;
    }
    form.elements.count.value = `${shown.toLocaleString("en")} shown`;
    document.querySelector(".none").hidden = shown > 0;
  }
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());

  const near = new IntersectionObserver((seen) => {
    for (const { isIntersecting, target } of seen) {
      if (!isIntersecting) continue;
      target.src = images[Number(target.dataset.image)].source;
      near.unobserve(target);
    }
  }, { rootMargin: "600px" });
  for (const image of document.querySelectorAll(".thumbs img")) near.observe(image);

  // --- panels: drawn in place, so that they are on paper too --------------------------------

  async function drawPanels() {
    for (const image of document.querySelectorAll(".strips img[data-image]")) {
      image.src = images[Number(image.dataset.image)].source;
    }
    for (const place of document.querySelectorAll("[data-tiles]")) {
      const index = Number(place.dataset.tiles);
      const example = examples[index];
      const data = await bytes(index);
      const targets = example.maps.map((map) => map.target);
      const first = targets.includes("predicted") ? "predicted" : "truth";
      const own = example.maps.filter(
        (map) => map.target === first || map.of?.startsWith("mean"),
      );
      place.replaceChildren(...own.map((map) => tile(example, map, data, map.top, true)));
    }
    document.documentElement.dataset.drawn = "yes";
  }
  drawPanels();
}

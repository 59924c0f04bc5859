// What the page does: choices at the top of a part, and what is drawn by them. All data are in #content.
"use strict";
(() => {
  const C = JSON.parse(document.getElementById("content").textContent);
  const $ = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";
  const GREY = "#c8c8c8";

  // Elements. Text is always set as text: labels come from plugins and are never read as markup.
  function el(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "style") Object.assign(made.style, value);
      else if (value !== undefined && value !== null) made.setAttribute(key, value);
    }
    made.append(...children.filter((child) => child !== undefined && child !== null));
    return made;
  }
  function draw(name, attributes, ...children) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }
  const option = (value, text) => el("option", { value }, text);
  const mean = (values) => {
    const known = values.filter((v) => v !== null && v !== undefined);
    return known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
  };
  const number = (value, digits = 1) => (value === null || value === undefined ? "–" : value.toFixed(digits));

  // What is chosen.
  const state = { set: 0, seed: null, layers: new Set(), detector: null, pair: null };
  const here = () => C.sets[state.set];
  const rows = () => C.rows.filter((row) => row.cells.some((cell) => cell.set === state.set));
  const cellsOf = (row) => row.cells.filter((cell) => cell.set === state.set);
  const cellOf = (row) => cellsOf(row).find((cell) => cell.seed === state.seed) || cellsOf(row)[0];
  const chosen = () => rows().find((row) => row.row === state.detector) || rows()[0];
  const className = (label) => here().classes[label] ?? String(label);

  // Colours: of classes and clusters on pictures (bright), of detectors on the page (by its theme).
  const colourOf = (label) => (label < 0 ? GREY : C.colours[label % C.colours.length]);
  const LIGHT = ["#0061a8", "#b34700", "#00744f", "#a3347d", "#7a5900", "#4b46c8", "#5b5f69", "#b0101c"];
  const DARK = ["#6cb8ff", "#ff9f5a", "#4fd3a3", "#f29ad4", "#e6c34a", "#aaa6ff", "#b5bac5", "#ff8a8a"];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let printing = false;
  const detectorColour = (row) => {
    const colours = dark.matches && !printing ? DARK : LIGHT;
    return colours[Math.max(0, rows().indexOf(row)) % colours.length];
  };
  const DASHES = [[], [6, 3], [2, 3], [8, 3, 2, 3]];
  const detectorDash = (row) => DASHES[Math.floor(Math.max(0, rows().indexOf(row)) / LIGHT.length) % DASHES.length];

  // Sorting. A second click turns the order round; what has no figure stays last.
  const headings = [...document.querySelectorAll(".results thead th")];
  const body = document.querySelector(".results tbody");
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const numeric = heading.classList.contains("number");
      const before = heading.getAttribute("aria-sort");
      const rising = before === "none" ? !numeric : before === "descending";
      headings.forEach((other) => other.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const key = (row) => (numeric ? row.cells[column].dataset.value : row.cells[column].textContent.trim());
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = numeric ? Number(x) - Number(y) : x.localeCompare(y, undefined, { numeric: true });
        return rising ? order : -order;
      };
      body.append(...[...body.rows].sort(compare));
    });
  });

  // The words beside the pointer, or beside the box that the keyboard is at.
  const tip = $("tip");
  function showTip(text, x, y) {
    tip.textContent = text;
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - width - 4))}px`;
    tip.style.top = `${y + 18 + height > innerHeight ? Math.max(4, y - height - 10) : y + 18}px`;
  }
  const hideTip = () => { tip.hidden = true; };
  addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
  addEventListener("scroll", hideTip, { passive: true });

  // Scenes.
  const isWrong = (box) => box[8] !== C.right && box[8] !== C.faint;
  const isFalse = (box) => isWrong(box) && box[8] !== C.other;
  const wrongs = (cell, scene) => cell.boxes[scene].filter(isWrong).length + cell.missed[scene].length;

  function framed(box, colour, words, dash, width, tag) {
    const [x0, y0, x1, y1] = box;
    const at = { x: x0, y: y0, width: x1 - x0, height: y1 - y0 };
    const still = { "vector-effect": "non-scaling-stroke" };
    const frame = draw("rect", {
      ...at, ...still, class: "frame", stroke: colour, "stroke-width": width, "stroke-dasharray": dash, "data-tip": words,
    });
    const parts = [draw("rect", { ...at, ...still, class: "halo", "stroke-width": width + 1.6 }), frame];
    if (tag) {
      const size = here().height / 14;
      const high = y0 > size * 1.1;
      parts.push(draw("text", {
        x: Math.min(x0, here().width - size * 0.62 * tag.length), y: high ? y0 - size * 0.2 : Math.min(y1 + size, here().height - 1),
        "font-size": size, fill: colour, stroke: "#000", "stroke-width": size / 5, "paint-order": "stroke", "pointer-events": "none",
      }, tag));
    }
    return parts;
  }

  function truthParts(scene, only, tags) {
    return here().truth[scene].flatMap((object, i) => {
      if (only && !only.includes(i)) return [];
      const words = `${only ? "missed" : "truth"}: class ${className(object[4])}`;
      const colour = only ? "#ff4b3a" : colourOf(object[4]);
      return framed(object, colour, words, only ? "5 3" : "", 1.6, tags ? className(object[4]).slice(0, 8) : "");
    });
  }

  // A layer is a cell as it is drawn: one of each row that is switched on, or the two that are compared.
  const layerOf = (row, cell, name = row.model) => ({ row, cell, name });
  const shownBoxes = (cell, scene) => {
    const kept = { wrong: isWrong, false: isFalse }[$("show").value];
    return kept ? cell.boxes[scene].filter(kept) : cell.boxes[scene];
  };
  const hasAny = ({ cell }, scene) => {
    const show = $("show").value;
    return show === "all" || (show === "missed" ? cell.missed[scene] : shownBoxes(cell, scene)).length > 0;
  };

  // What sets two cells apart in a scene.
  const rightOf = (cell, scene) => new Set(cell.boxes[scene].filter((box) => box[8] === C.right).map((box) => box[9]));
  function apart([a, b], scene) {
    const [x, y] = [rightOf(a, scene), rightOf(b, scene)];
    const only = [[...x].filter((i) => !y.has(i)).length, [...y].filter((i) => !x.has(i)).length];
    const wrong = [a, b].map((cell) => cell.boxes[scene].filter(isFalse).length);
    return { only, wrong, differ: only[0] + only[1] > 0 || wrong[0] !== wrong[1], size: only[0] + only[1] + Math.abs(wrong[0] - wrong[1]) };
  }

  function foundParts({ row, cell }, scene, dash, tags) {
    if ($("show").value === "missed") return truthParts(scene, cell.missed[scene], tags);
    const boxes = shownBoxes(cell, scene);
    return [...boxes].reverse().flatMap((box) => {
      const [, , , , score, cluster, stands, iou, kind] = box;
      const words = [`${row.model}, seed ${cell.seed}`, `${C.kinds[kind]}, score ${score.toFixed(2)}, IoU ${iou.toFixed(2)}`];
      if (cell.clusters) {
        words.push(cluster < 0 ? "in no cluster" : `cluster ${cluster}, ${stands < 0 ? "stands for no class" : `stands for class ${className(stands)}`}`);
      }
      const faint = kind === C.faint;
      const tag = tags && !faint && cell.clusters ? String(cluster) : "";
      return framed(box, colourOf(stands), words.join("\n"), faint ? "1 3" : dash, faint ? 1 : 1.8, tag);
    });
  }

  function panel(scene, caption, label, parts) {
    const { width, height, images } = here();
    const picture = draw("svg", { viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "img", "aria-label": label });
    if (images[scene]) picture.append(draw("image", { href: images[scene], width, height, preserveAspectRatio: "none" }));
    picture.append(...parts);
    let at = -1;
    picture.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const frames = [...picture.querySelectorAll(".frame")];
      if (!step || !frames.length) return;
      event.preventDefault();
      at = (at + step + frames.length + (at < 0 && step < 0)) % frames.length;
      frames.forEach((frame, i) => frame.classList.toggle("chosen", i === at));
      const { right, bottom } = frames[at].getBoundingClientRect();
      showTip(frames[at].dataset.tip, right, bottom);
    });
    picture.addEventListener("blur", () => {
      picture.querySelectorAll(".chosen").forEach((frame) => frame.classList.remove("chosen"));
      at = -1;
      hideTip();
    });
    return el("figure", { class: "panel" }, picture, el("figcaption", {}, caption));
  }
  $("grid").addEventListener("pointermove", (event) => {
    const words = event.target.dataset && event.target.dataset.tip;
    if (words) showTip(words, event.clientX, event.clientY);
    else hideTip();
  });
  $("grid").addEventListener("pointerleave", hideTip);

  function summary({ cell }, scene) {
    const right = cell.boxes[scene].filter((box) => box[8] === C.right).length;
    const wrong = cell.boxes[scene].filter(isWrong).length;
    return `${right} right, ${wrong} wrong, ${cell.missed[scene].length} missed`;
  }

  // The two cells that are compared, as layers; none if fewer than two are chosen.
  const cellKeys = () => rows().flatMap((row) => cellsOf(row).map((cell) => [cell.cell, row, cell]));
  function pairOf() {
    const chosen = [$("first"), $("second")].map((one) => cellKeys().find(([key]) => key === one.value));
    return chosen.every(Boolean) ? chosen.map(([, row, cell], i) => layerOf(row, cell, "AB"[i])) : null;
  }

  function choosePair() {
    state.pair = pairOf();
    const order = $("order");
    const before = order.value;
    const judges = state.pair ? [option("apart", "largest difference first"), option("0", "worst of A first"), option("1", "worst of B first")]
      : rows().map((row) => option(row.row, `worst of ${row.model} first`));
    order.replaceChildren(option("", "as numbered"), ...judges);
    if ([...order.options].some((one) => one.value === before)) order.value = before;
    $("differ").disabled = !state.pair;
    $("seed").disabled = Boolean(state.pair);
    document.querySelectorAll("#layers input").forEach((box) => { box.disabled = Boolean(state.pair) && box.dataset.row !== "truth"; });
    drawPair();
    drawScenes();
  }

  function drawPair() {
    $("pair").hidden = !state.pair;
    if (!state.pair) return;
    const figure = (value, heading) => (value === null || value === undefined ? "–" : number(heading.includes("%") ? 100 * value : value).replace("-", "−"));
    const lines = [...C.columns.map(({ name, heading }) => [heading, state.pair.map(({ cell }) => cell.metrics[name]), heading]),
      ["training, s", state.pair.map(({ cell }) => cell.seconds), ""]];
    $("pair").firstElementChild.replaceChildren(
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Of the whole test set"), ...state.pair.map(({ name }) => el("th", { scope: "col", class: "number" }, name)), el("th", { scope: "col", class: "number" }, "A − B"))),
      el("tbody", {}, ...lines.map(([title, [x, y], heading]) => el("tr", {}, el("th", { scope: "row" }, title),
        ...[x, y, x === null || y === null || x === undefined || y === undefined ? null : x - y].map((value) => el("td", { class: "number" }, figure(value, heading)))))));
  }

  function drawScenes() {
    const layers = state.pair || rows().filter((row) => state.layers.has(row.row)).map((row) => layerOf(row, cellOf(row)));
    const truth = state.layers.has("truth");
    let scenes = [...Array(here().shown).keys()];
    const order = $("order").value;
    const judge = state.pair ? state.pair[Number(order)] : rows().filter((row) => String(row.row) === order).map((row) => layerOf(row, cellOf(row)))[0];
    const cells = state.pair && state.pair.map(({ cell }) => cell);
    const of = cells && scenes.map((scene) => apart(cells, scene));
    if (order === "apart" && of) scenes.sort((a, b) => of[b].size - of[a].size || a - b);
    else if (order !== "" && judge) scenes.sort((a, b) => wrongs(judge.cell, b) - wrongs(judge.cell, a) || a - b);
    const all = scenes.length;
    if (of && $("differ").checked) scenes = scenes.filter((scene) => of[scene].differ);
    if ($("show").value !== "all") scenes = scenes.filter((scene) => layers.some((layer) => hasAny(layer, scene)));
    const count = (test) => of.filter(test).length;
    const named = of && state.pair.map(({ row, cell, name }) => `${name}: ${row.model}, seed ${cell.seed}.`).join(" ");
    const said = of ? `${named} Of these ${all} scenes they differ in ${count((one) => one.differ)}. More objects are right in A in ${count(({ only: [x, y] }) => x > y)}, and in B in ${count(({ only: [x, y] }) => y > x)}. ` : "";
    $("said").textContent = said + (scenes.length < all ? `${scenes.length} of ${all} scenes are shown.` : "");
    const over = $("view").value === "over";
    const grid = $("grid");
    grid.className = over ? "over" : "";
    grid.replaceChildren(...scenes.map((scene) => {
      let name = `Scene ${scene + 1}`;
      if (of) {
        const { only, wrong } = of[scene];
        const parts = ["A", "B"].flatMap((side, i) => (only[i] ? [`only ${side} has ${only[i]} right`] : []));
        if (wrong[0] !== wrong[1]) parts.push(`false boxes: ${wrong[0]} in A, ${wrong[1]} in B`);
        name += `: ${parts.join("; ") || "no difference"}`;
      }
      if (over) {
        const parts = truth ? truthParts(scene, null, false) : [];
        layers.forEach((layer, i) => parts.push(...foundParts(layer, scene, ["", "7 3", "3 3", "9 3 2 3"][i % 4], false)));
        const words = layers.map((layer) => `${layer.name}: ${summary(layer, scene)}`).join("; ");
        return panel(scene, `${name}. ${words}`, `${name}. ${words}`, parts);
      }
      const panels = truth ? [panel(scene, "truth", `${name}, truth: ${here().truth[scene].length} objects`, truthParts(scene, null, true))] : [];
      for (const layer of layers) {
        const words = summary(layer, scene);
        panels.push(panel(scene, `${layer.name}: ${words}`, `${name}, ${layer.name}: ${words}`, foundParts(layer, scene, "", true)));
      }
      return el("div", { class: "scene" }, el("h4", {}, name), ...panels);
    }));
  }
  $("grid").addEventListener("keydown", (event) => {
    const step = event.ctrlKey || event.altKey || event.metaKey ? 0 : { j: 1, k: -1 }[event.key.toLowerCase()];
    const all = [...$("grid").children];
    const at = all.findIndex((one) => one.contains(event.target));
    const next = step && all[at + step];
    if (!next) return;
    event.preventDefault();
    next.querySelector("svg").focus();
  });

  // Charts. uPlot draws on a canvas; they are drawn again when the theme changes or paper is asked for.
  let charts = [];
  const PAPER = { "--ink": "#000", "--line": "#c9ccd3", "--grid": "#e3e5ea" }; // before a print the screen's style is still in force
  const style = (name) => (printing && PAPER[name]) || getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  function chart(host, title, series, { x = "", percent = false, log = false, points = false } = {}) {
    series = series.filter((one) => one.y.some((value) => value !== null && value !== undefined));
    if (!series.length) return;
    const canvas = el("div", { class: "canvas", role: "img" });
    const last = (values) => values.filter((v) => v !== null && v !== undefined).at(-1);
    const word = (value) => (percent ? `${(100 * value).toFixed(1)} %` : String(Number(value.toPrecision(4))));
    canvas.setAttribute("aria-label", `${title}; last values: ${series.map((one) => `${one.label} ${word(last(one.y))}`).join(", ")}`);
    host.append(el("figure", { class: "chart" }, el("figcaption", {}, title), canvas));
    const data = uPlot.join(series.map((one) => [one.x, one.y.map((v) => (v === null || v === undefined ? null : percent ? 100 * v : v))]));
    const axis = (label) => ({ label, stroke: style("--ink"), grid: { stroke: style("--grid"), width: 1 }, ticks: { stroke: style("--line"), width: 1 }, font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif", labelSize: 18, size: label ? 34 : 54 });
    const nearest = (u, s, i) => {
      const values = u.data[s];
      for (let off = 0; off < values.length; off++) {
        if (values[i - off] !== null && values[i - off] !== undefined) return i - off;
        if (values[i + off] !== null && values[i + off] !== undefined) return i + off;
      }
      return i;
    };
    const plot = new uPlot({
      width: Math.max(200, canvas.clientWidth), height: 230, legend: { show: false },
      scales: { x: { time: false, distr: log ? 3 : 1 }, y: percent ? { range: [0, 101] } : {} },
      axes: [axis(x), axis("")],
      cursor: { y: false, drag: { x: true, y: false }, focus: { prox: 24 }, dataIdx: nearest },
      focus: { alpha: 0.25 },
      series: [{}, ...series.map((one) => ({ label: one.label, stroke: one.colour, dash: one.dash || [], width: 1.7, spanGaps: true, points: { show: points || one.y.length < 14, size: 5, fill: one.colour } }))],
      hooks: { setSeries: [(u, s) => {
        const i = s === null ? null : u.cursor.idxs[s];
        if (i === null || i === undefined || u.data[s][i] === null || u.data[s][i] === undefined) return hideTip();
        const box = u.over.getBoundingClientRect();
        const value = u.data[s][i];
        showTip(`${series[s - 1].label}\n${x ? `${x} ${Number(u.data[0][i].toPrecision(4))}: ` : ""}${percent ? `${value.toFixed(1)} %` : Number(value.toPrecision(4))}`, box.left + u.cursor.left, box.top + u.cursor.top);
      }] },
    }, data, canvas);
    canvas.addEventListener("pointerleave", hideTip);
    charts.push([plot, canvas]);
  }
  let waiting = 0;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => charts.forEach(([plot, canvas]) => plot.setSize({ width: Math.max(200, canvas.clientWidth), height: 230 })), 150);
  });

  // Tables of numbers with a bar behind each.
  function shaded(table, names, lines, form) {
    const most = Math.max(1e-9, ...lines.flatMap(([, values]) => values.filter((v) => v !== null)));
    table.replaceChildren(
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Model"), ...names.map((name) => el("th", { scope: "col", class: "number" }, name)))),
      el("tbody", {}, ...lines.map(([row, values]) => el("tr", {}, el("th", { scope: "row" }, row.model), ...values.map((value, i) => {
        const size = value === null ? 0 : Math.max(0, (100 * value) / (Array.isArray(most) ? most[i] : most));
        return el("td", { class: "number shaded", style: { backgroundSize: `${size.toFixed(1)}% 100%` } }, form(value, i));
      })))),
    );
  }

  function drawWhy() {
    const kinds = C.kinds.map((name, i) => [name, i]).filter(([, i]) => i !== C.faint);
    const used = kinds.filter(([, i]) => rows().some((row) => cellsOf(row).some((cell) => cell.counts[i])));
    shaded($("kinds"), [...used.map(([name]) => name), "missed"], rows().map((row) => {
      const of = cellsOf(row).filter((cell) => cell.objects);
      const share = (count) => mean(of.map((cell) => (100 * count(cell)) / cell.objects));
      return [row, [...used.map(([, i]) => share((cell) => cell.counts[i])), share((cell) => cell.missing)]];
    }), (value) => number(value));
    shaded($("gains"), C.fixes, rows().map((row) => [row, C.fixes.map((_, i) => mean(cellsOf(row).map((cell) => (cell.gains.length ? 100 * cell.gains[i] : null))))]), (value) => number(value));
    const host = $("quality");
    const lines = (get, x) => rows().map((row) => ({
      label: row.model, colour: detectorColour(row), dash: detectorDash(row), x,
      y: x.map((_, i) => mean(cellsOf(row).map((cell) => get(cell)[i]))),
    }));
    const { sizes, crowds } = here();
    chart(host, "AP (%) by the IoU that a hit needs", lines((cell) => cell.precisions, C.thresholds), { x: "IoU", percent: true, points: true });
    const middle = sizes.slice(1).map((edge, i) => (edge + sizes[i]) / 2);
    chart(host, "Recall (%) by size of object", lines((cell) => cell.by_size, middle), { x: "square root of area, pixels", percent: true, points: true });
    chart(host, "Recall (%) by crowding", lines((cell) => cell.by_crowd, crowds), { x: "objects in the scene", percent: true, points: true });
  }

  function drawDetector() {
    const row = chosen();
    const table = $("confusion");
    const crops = $("crops");
    if (!row) return;
    const cell = cellOf(row);
    if (!cell.confusion) {
      table.replaceChildren(el("tbody", {}, el("tr", {}, el("td", {}, "It does not cluster."))));
      crops.replaceChildren();
    } else {
      const { clusters, stands, classes, table: counts } = cell.confusion;
      const label = (c) => (c < 0 ? "none" : String(c));
      table.replaceChildren(
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "class \\ cluster"), ...clusters.map((c, i) => el("th", { scope: "col", class: "number" }, el("span", { class: "chip", style: { background: colourOf(stands[i]) } }), label(c))))),
        el("tbody", {}, ...classes.map((k, r) => {
          const all = Math.max(1, counts[r].reduce((a, b) => a + b, 0));
          return el("tr", {}, el("th", { scope: "row" }, el("span", { class: "chip", style: { background: colourOf(k) } }), className(k)), ...counts[r].map((n, i) =>
            el("td", { class: stands[i] === k ? "stands" : null, style: { background: `color-mix(in srgb, var(--bar) ${Math.round((100 * n) / all)}%, transparent)` } }, String(n))));
        })),
      );
      const held = new Map(clusters.map((c) => [c, []]));
      cell.boxes.forEach((boxes, scene) => boxes.forEach((box) => {
        if (box[8] !== C.faint && held.has(box[5])) held.get(box[5]).push([box, scene]);
      }));
      crops.replaceChildren(...(here().images.length ? clusters.map((c, i) => {
        const boxes = held.get(c).sort((a, b) => b[0][4] - a[0][4]).slice(0, 20);
        const name = stands[i] < 0 ? "no class" : className(stands[i]);
        return el("div", { class: "cluster" },
          el("span", {}, el("span", { class: "chip", style: { background: colourOf(stands[i]) } }), `${c < 0 ? "noise" : `cluster ${c}`} → ${name}`),
          el("div", {}, ...boxes.map(([box, scene]) => crop(box, scene))));
      }) : [el("p", { class: "remark" }, "The pictures of these scenes are not kept in this store.")]));
    }
    const host = $("terms");
    host.replaceChildren();
    const axis = $("axis").value;
    const groups = [["terms", ""], ["watch", "watched: "]];
    for (const [group, before] of groups) {
      const names = new Set(cellsOf(row).flatMap((one) => Object.keys(one.curve[group])));
      for (const name of names) chart(host, before + name, curvesOf([row], (one) => one.curve[group][name], axis), { x: axis });
    }
    if (!host.children.length) host.append(el("p", {}, "No curve was recorded."));
  }

  function crop([x0, y0, x1, y1, score, , , , kind], scene) {
    const side = Math.max(4, x1 - x0, y1 - y0) * 1.15;
    const view = [(x0 + x1 - side) / 2, (y0 + y1 - side) / 2, side, side];
    const { width, height, images } = here();
    const on = kind === C.right ? "" : C.kinds[kind] === "wrong cluster" ? "other" : "none";
    const words = `scene ${scene + 1}, ${C.kinds[kind]}, score ${score.toFixed(2)}`;
    return draw("svg", { class: `crop ${on}`, viewBox: view.join(" "), role: "img", "aria-label": words },
      draw("title", {}, words), draw("image", { href: images[scene], width, height, preserveAspectRatio: "none" }));
  }

  function curvesOf(of, get, axis) {
    return of.flatMap((row) => cellsOf(row).flatMap((cell) => {
      const y = get(cell);
      const x = cell.curve[axis];
      return y && x.length ? [{ label: labelOf(row, cell), colour: detectorColour(row), dash: detectorDash(row), x, y }] : [];
    }));
  }
  // A curve is of the detector as it trains, before another clusterer replaces its clusters.
  const labelOf = (row, cell) => `${row.model}, seed ${cell.seed}${row.replaces && cell.curve.step.length ? " (the detector's own clusters)" : ""}`;
  const trainingOf = (cell) => cell.cell.split("/")[0];
  // Rows without those that only repeat the curves of detectors that keep their clusters.
  function trainedRows() {
    const own = new Set(rows().filter((row) => !row.replaces).flatMap(cellsOf).map(trainingOf));
    return rows().filter((row) => !row.replaces || !cellsOf(row).every((cell) => own.has(trainingOf(cell))));
  }

  function drawHow() {
    const axis = $("axis").value;
    const known = C.columns.filter(({ name }) => rows().some((row) => cellsOf(row).some((cell) => cell.curve.metrics[name])));
    const host = $("curves");
    host.replaceChildren();
    for (const { name, heading } of known) {
      chart(host, heading, curvesOf(trainedRows(), (cell) => cell.curve.metrics[name], axis), { x: axis, percent: heading.includes("%") });
    }
    if (!host.children.length) host.append(el("p", {}, "No curve was recorded."));
    const price = $("price");
    price.replaceChildren();
    const [first] = C.columns;
    if (first) {
      // What trains without steps has no curve: it is a point, of its figure on the test scenes.
      const fitted = rows().flatMap((row) => cellsOf(row).filter((cell) => !cell.curve.step.length && cell.seconds !== null).map((cell) => (
        { label: `${labelOf(row, cell)} (test scenes)`, colour: detectorColour(row), x: [Math.max(0.01, cell.seconds)], y: [cell.metrics[first.name]] })));
      const curves = curvesOf(trainedRows(), (cell) => cell.curve.metrics[first.name], "seconds");
      chart(price, `${first.heading} against training seconds${fitted.length ? "; points: no training steps" : ""}`, [...curves, ...fitted], { x: "seconds", percent: first.heading.includes("%"), log: true });
    }
    const costs = [["seconds", "training, s", 0], ["clustering", "clusterer, s", 0], ["memory", "peak memory, MB", 0], ["speed", "images/s", 0]];
    const lines = rows().map((row) => [row, costs.map(([name]) => mean(cellsOf(row).map((cell) => cell[name])))]);
    const most = costs.map((_, i) => Math.max(1e-9, ...lines.map(([, values]) => values[i] || 0)));
    const scaled = lines.map(([row, values]) => [row, values.map((v, i) => (v === null ? null : v / most[i]))]);
    shaded($("cost"), costs.map(([, title]) => title), scaled, (value, i) => (value === null ? "–" : number(value * most[i], costs[i][2])));
  }

  function drawCharts() {
    charts.forEach(([plot]) => plot.destroy());
    charts = [];
    $("quality").replaceChildren();
    document.querySelectorAll(".detectors").forEach((key) => key.replaceChildren(...rows().map((row) =>
      el("li", {}, el("span", { class: "chip", style: { background: detectorColour(row) } }), row.model))));
    drawWhy();
    drawHow();
    drawDetector();
  }

  function chooseSet(number) {
    state.set = number;
    const seeds = [...new Set(rows().flatMap((row) => cellsOf(row).map((cell) => cell.seed)))].sort((a, b) => a - b);
    state.seed = seeds[0];
    $("seed").replaceChildren(...seeds.map((seed) => option(seed, seed)));
    for (const one of [$("first"), $("second")]) {
      one.replaceChildren(option("", "–"), ...cellKeys().map(([key, row, cell]) => option(key, `${row.model}, seed ${cell.seed}`)));
    }
    $("detector").replaceChildren(...rows().map((row) => option(row.row, row.model)));
    state.detector = rows()[0] && rows()[0].row;
    state.layers = new Set(["truth", ...rows().slice(0, 5).map((row) => row.row)]);
    const layer = (key, name) => {
      const box = el("input", { type: "checkbox" });
      box.checked = state.layers.has(key);
      box.dataset.row = key;
      box.addEventListener("change", () => {
        if (box.checked) state.layers.add(key);
        else state.layers.delete(key);
        drawScenes();
      });
      return el("label", {}, box, ` ${name}`);
    };
    $("layers").replaceChildren(layer("truth", "truth"), ...rows().map((row) => layer(row.row, row.model)));
    $("classes").replaceChildren(...here().classes.map((name, label) => el("li", {}, el("span", { class: "chip", style: { background: colourOf(label) } }), name)),
      el("li", {}, el("span", { class: "chip", style: { background: GREY } }), "a cluster without a class"));
    choosePair();
    drawCharts();
  }

  if (C.sets.length) {
    document.documentElement.classList.replace("wait", "on");
    $("set").addEventListener("change", () => chooseSet(Number($("set").value)));
    $("seed").addEventListener("change", () => { state.seed = Number($("seed").value); drawScenes(); drawCharts(); });
    for (const id of ["first", "second"]) $(id).addEventListener("change", choosePair);
    for (const id of ["view", "order", "show", "differ"]) $(id).addEventListener("change", drawScenes);
    $("detector").addEventListener("change", () => { state.detector = Number($("detector").value); drawCharts(); });
    $("axis").addEventListener("change", drawCharts);
    dark.addEventListener("change", drawCharts);
    addEventListener("beforeprint", () => { printing = true; document.querySelectorAll("#table details").forEach((one) => { one.open = true; }); drawCharts(); });
    addEventListener("afterprint", () => { printing = false; drawCharts(); });
    const [first, second] = C.pair;
    chooseSet(Math.max(0, C.sets.findIndex((_, i) => C.rows.some((row) => row.cells.some((cell) => cell.cell === first && cell.set === i)))));
    if (first && second) {
      $("set").value = state.set;
      $("first").value = first;
      $("second").value = second;
      $("differ").checked = true;
      choosePair();
      $("order").value = "apart";
      drawScenes();
    }
  }
})();

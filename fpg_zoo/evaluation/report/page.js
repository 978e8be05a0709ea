"use strict";

// What the page shows that depends on the score threshold or on a class; everything else stands in it already.
// Numbers of detections come as [step, number, ...]: a detection counts up to the threshold of its step.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const [LEFT, TOP, ACROSS, DOWN] = data.chart; // where its axes are
  const NONE = data.classes.length; // in place of an object's class: background
  const MOST_FREQUENT = 12; // pairs of classes
  const slider = document.getElementById("threshold");
  const all = (pattern, root = document) => [...root.querySelectorAll(pattern)];

  const made = (name, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };
  const fraction = (value) => (Number.isFinite(value) ? value.toFixed(3) : "–");
  const percent = (part, whole) => (whole ? `${Math.round((100 * part) / whole)} %` : "–");

  // Counts at a threshold

  const countsAt = (step) => {
    const counts = new Map(); // by pair
    const sums = { right: new Array(NONE).fill(0), wrong: new Array(NONE).fill(0), hit: new Array(NONE + 1).fill(0) };
    for (const [truth, label, steps] of data.cells) {
      let number = 0;
      for (let place = 0; place < steps.length; place += 2) if (steps[place] >= step) number += steps[place + 1];
      if (!number) continue;
      counts.set(truth * (NONE + 1) + label, number);
      sums[truth === label ? "right" : "wrong"][label] += number;
      sums.hit[truth] += number;
    }
    return { of: (truth, label) => counts.get(truth * (NONE + 1) + label) || 0, counts, ...sums };
  };

  const rates = (right, wrong, truth) => ({
    precision: right / (right + wrong),
    recall: right / truth,
    f1: (2 * right) / (right + wrong + truth),
  });

  const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);

  // The tables of classes and of confusion

  const showRates = (now) => {
    const overall = rates(sum(now.right), sum(now.wrong), sum(data.truth));
    for (const cell of all("[data-overall]")) cell.textContent = fraction(overall[cell.dataset.overall]);
    for (const row of all("#by-class tbody tr")) {
      const label = Number(row.dataset.label);
      const own = rates(now.right[label], now.wrong[label], data.truth[label]);
      for (const cell of all("[data-mark]", row)) cell.textContent = fraction(own[cell.dataset.mark]);
    }
  };

  const tableOf = (caption, heads, body) =>
    made("table", {}, made("caption", { textContent: caption }), made("thead", {}, made("tr", {}, ...heads)), body);
  const head = (text, kind) => made("th", { scope: "col", className: kind, textContent: text });

  const showFrequent = (now) => {
    const pairs = [...now.counts]
      .map(([key, number]) => [Math.floor(key / (NONE + 1)), key % (NONE + 1), number])
      .filter(([truth, label]) => truth !== label && truth !== NONE)
      .sort((one, other) => other[2] - one[2] || one[0] - other[0] || one[1] - other[1])
      .slice(0, MOST_FREQUENT);
    const body = made("tbody");
    for (const [truth, label, number] of pairs) {
      const cells = [data.classes[label], String(number), percent(number, data.truth[truth])];
      const kinds = ["name", "number", "number"];
      const row = made("tr", {}, made("th", { scope: "row", textContent: data.classes[truth] }));
      row.append(...cells.map((textContent, place) => made("td", { className: kinds[place], textContent })));
      body.append(row);
    }
    if (!pairs.length) body.append(made("tr", {}, made("td", { colSpan: 4, textContent: "No class is taken for another." })));
    const heads = [head("Annotated", "name"), head("Detected as", "name"), head("Number", "number"), head("Of these objects", "number")];
    document.getElementById("frequent").replaceChildren(tableOf("Most frequent confusions", heads, body));
  };

  const matrix = (() => {
    const rows = [...data.matrix, NONE];
    const columns = [...data.matrix, "missed"];
    const nameOf = (label) => (label === NONE ? "background" : label === "missed" ? label : data.classes[label]);
    const heads = [head("annotated", "name")];
    for (const label of columns) {
      const one = made("th", { scope: "col", title: nameOf(label) }, made("span", { textContent: nameOf(label) }));
      heads.push(one);
    }
    const body = made("tbody");
    const cells = [];
    for (const truth of rows) {
      const row = made("tr", {}, made("th", { scope: "row", title: nameOf(truth), textContent: nameOf(truth) }));
      for (const label of columns) {
        const aside = truth === NONE || label === "missed";
        const cell = made("td", { className: aside ? "aside" : truth === label ? "right" : "" });
        cells.push([cell, truth, label]);
        row.append(cell);
      }
      body.append(row);
    }
    document.getElementById("matrix").replaceChildren(tableOf("Annotated classes by detected classes", heads, body));

    return (now) => {
      for (const [cell, truth, label] of cells) {
        let number = 0;
        if (label !== "missed") number = now.of(truth, label);
        else if (truth !== NONE) number = data.truth[truth] - now.hit[truth];
        const whole = truth === NONE ? now.hit[NONE] : data.truth[truth];
        cell.textContent = number || "";
        // Not to the full tone, so that the number stays legible on it.
        cell.style.setProperty("--share", `${number ? 8 + (52 * number) / whole : 0}%`);
        const told = label === "missed" ? "missed" : `detected as ${nameOf(label)}`;
        cell.title = number ? `${nameOf(truth)} ${told}: ${number} of ${whole} (${percent(number, whole)})` : "";
      }
    };
  })();

  // Images

  const shapes = all(".worst .shape").map((element) => [element, Number(element.dataset.step)]);
  const showShapes = (step) => {
    for (const [element, last] of shapes) {
      const names = element.classList;
      if (names.contains("object")) names.toggle("missed", last < step);
      else if (!names.contains("crowd")) names.toggle("below", last < step);
    }
    for (const figure of all(".worst")) {
      for (const text of all("[data-count]", figure)) {
        text.textContent = all(`g.${text.dataset.count}:not(.below)`, figure.querySelector(".sides")).length;
      }
    }
  };

  // Everything at a threshold

  let shown = null;
  const show = () => {
    const step = Number(slider.value);
    if (step === shown) return;
    shown = step;
    const now = countsAt(step);
    document.getElementById("shown").textContent = data.thresholds[step];
    slider.setAttribute("aria-valuetext", data.thresholds[step]);
    document.getElementById("marker").setAttribute("d", `M${LEFT + (ACROSS * step) / 100} ${TOP}v${DOWN}`);
    showRates(now);
    showFrequent(now);
    matrix(now);
    showShapes(step);
  };

  // Curves of one class

  const choice = document.getElementById("class");
  const showCurves = () => {
    for (const figure of all("[data-curves]")) {
      const one = data.curves[figure.dataset.curves][Number(choice.value)];
      const pathOf = (values) =>
        "M" + values.map((value, place) => `${LEFT + (ACROSS * place) / 100} ${TOP + DOWN * (1 - value / data.parts)}`).join("L");
      all(".chart .curve", figure).forEach((path, place) => path.setAttribute("d", one ? pathOf(one.precision[place]) : ""));
      all(".key b", figure).forEach((text, place) => (text.textContent = one ? one.ap[place] : "–"));
    }
  };

  // The table of classes in any order

  const sortable = (table) => {
    const body = table.tBodies[0];
    const numberOf = (cell) => {
      const number = parseFloat(cell.textContent.replace(/,/g, ""));
      return Number.isNaN(number) ? -1 : number;
    };
    all("tbody tr", table).forEach((row, place) => (row.dataset.label = place));
    all("thead th", table).forEach((title, place) => {
      const compare = place
        ? (one, other) => numberOf(one.cells[place]) - numberOf(other.cells[place])
        : (one, other) => one.cells[0].textContent.localeCompare(other.cells[0].textContent);
      const [first, second] = place ? ["descending", "ascending"] : ["ascending", "descending"];
      const button = made("button", { type: "button", textContent: title.textContent });
      title.replaceChildren(button);
      button.addEventListener("click", () => {
        const wanted = title.getAttribute("aria-sort") === first ? second : first;
        const sign = wanted === "ascending" ? 1 : -1;
        all("thead th", table).forEach((one) => one.removeAttribute("aria-sort"));
        title.setAttribute("aria-sort", wanted);
        body.append(...[...body.rows].sort((one, other) => sign * compare(one, other)));
      });
    });
  };

  sortable(document.getElementById("by-class"));
  slider.addEventListener("input", show);
  choice.addEventListener("change", showCurves);
  show();
  showCurves();
  document.documentElement.dataset.ready = "yes";
})();

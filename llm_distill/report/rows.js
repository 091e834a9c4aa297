// The rows browser of a report. Text of others goes into the page through `textContent` alone; nothing is fetched.
"use strict";
(() => {
  const PAGE = 20, VALUES = 60;
  const data = JSON.parse(document.getElementById("rows-data").textContent);
  const $ = (id) => document.getElementById(`rows-${id}`);
  const names = { held_out: data.alone ? "Rows" : "Held-out rows", asked: "Rows that were asked" };
  // The two arms whose verdicts are held against each other; of one arm alone there is none.
  const [[ours, first], [theirs, second] = []] = data.pair;
  let table, hits, page;

  const make = (tag, text, kind) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (kind) element.className = kind;
    return element;
  };
  const fold = (text) => text.normalize("NFKC").toUpperCase(); // Σ is both σ and ς, SS is ß
  const texts = (of) => typeof of === "object" && of !== null ? Object.values(of).map(texts).join("\n") : String(of ?? "");
  const score = (row, arm) => row.arms?.[arm]?.score;
  const right = (row, arm) => score(row, arm) === undefined ? undefined : score(row, arm) >= 1;
  const said = (of) => of.status ?? "ok";

  // What can be chosen: [label, [[value, label, test], ...]], each list as long as the rows make it.
  function filters() {
    const rows = table.rows, found = [];
    const values = (of) => [...new Set(rows.flatMap(of))].filter((v) => v !== undefined).sort();
    if (table.name === "held_out") {
      const choices = [];
      const arms = data.arms.filter(([arm]) => rows.some((row) => score(row, arm) !== undefined));
      const both = [ours, theirs].every((arm) => arms.some(([name]) => name === arm));
      if (both && data.graded) {
        choices.push([`${first} below ${second}`, (row) => score(row, ours) < score(row, theirs)]);
        choices.push([`${first} above ${second}`, (row) => score(row, ours) > score(row, theirs)]);
      } else if (both) {
        choices.push([`${first} wrong and ${second} right`, (r) => right(r, ours) === false && right(r, theirs) === true]);
        choices.push([`${first} right and ${second} wrong`, (r) => right(r, ours) === true && right(r, theirs) === false]);
        choices.push(["Both wrong", (r) => right(r, ours) === false && right(r, theirs) === false]);
      }
      for (const [arm, name] of arms) {
        choices.push([`${name} ${data.graded ? "below full marks" : "wrong"}`, (row) => right(row, arm) === false]);
        choices.push([`${name} ${data.graded ? "with full marks" : "right"}`, (row) => right(row, arm) === true]);
      }
      found.push([`Verdict (${data.metric})`, choices]);
      const states = values((row) => Object.values(row.arms).map(said));
      const any = (state) => (row) => Object.values(row.arms).some((answer) => said(answer) === state);
      if (states.length > 1) found.push(["Status of an answer", states.map((state) => [state, any(state)])]);
    } else {
      const by = values((row) => row.dropped_by);
      const fates = [["Kept", (row) => !row.dropped_by], ["Dropped", (row) => !!row.dropped_by]];
      found.push(["Kept or dropped", [...fates, ...by.map((name) => [`Dropped by ${name}`, (row) => row.dropped_by === name])]]);
      const states = values((row) => said(row.teacher));
      if (states.length > 1) found.push(["Status", states.map((state) => [state, (row) => said(row.teacher) === state])]);
      const roles = values((row) => row.by);
      if (roles.length > 1) found.push(["Answered by", roles.map((role) => [role, (row) => row.by === role])]);
    }
    for (const tag of values((row) => Object.keys(row.tags ?? {}))) {
      const tagged = (row) => (row.tags && Object.hasOwn(row.tags, tag) ? row.tags[tag] : undefined); // `constructor`, too
      const of = values(tagged);
      if (of.length > 1 && of.length <= VALUES) found.push([tag, of.map((value) => [value, (row) => tagged(row) === value])]);
    }
    return found.filter(([, choices]) => choices.length);
  }

  function open(name) {
    table = { name, ...data.tables[name], tests: [] };
    const built = filters().map(([label, choices], at) => {
      const box = make("label", undefined, "field"), select = make("select");
      select.append(make("option", "all"), ...choices.map(([text]) => make("option", text)));
      select.addEventListener("change", () => {
        table.tests[at] = choices[select.selectedIndex - 1]?.[1];
        search();
      });
      box.append(make("span", label), select);
      return box;
    });
    $("filters").replaceChildren(...built);
    search();
  }

  function search() {
    const words = fold($("query").value).split(/\s+/).filter(Boolean);
    for (const row of table.rows) row.found ??= fold(texts(row));
    const tests = table.tests.filter(Boolean);
    hits = table.rows.filter((row) => words.every((word) => row.found.includes(word)) && tests.every((test) => test(row)));
    show(0);
  }

  function show(next) {
    page = next;
    const pages = Math.max(1, Math.ceil(hits.length / PAGE)), first = page * PAGE;
    $("list").replaceChildren(...hits.slice(first, first + PAGE).map(card));
    const number = (n) => n.toLocaleString("en");
    const shown = hits.length > PAGE ? `, ${number(first + 1)} to ${number(Math.min(first + PAGE, hits.length))} shown` : "";
    $("count").textContent = `${number(hits.length)} of ${number(table.rows.length)} rows${shown}`;
    $("page").textContent = `Page ${number(page + 1)} of ${number(pages)}`;
    $("pager").hidden = pages < 2;
    $("before").setAttribute("aria-disabled", page === 0);
    $("after").setAttribute("aria-disabled", page === pages - 1);
  }

  function turn(by) {
    if (page + by < 0 || (page + by) * PAGE >= hits.length) return;
    show(page + by);
    $("count").scrollIntoView({ block: "start" });
    $("list").focus({ preventScroll: true });
  }

  function card(row) {
    const item = make("li"), head = make("h3"), facts = make("table"), body = make("tbody");
    head.append(make("b", fate(row)), make("span", row.id, "mono"));
    facts.append(body);
    const text = make("div", undefined, "asked");
    text.append(long(row.text));
    item.append(head, text, facts);
    const line = (name, value, kind) => {
      const tr = make("tr", undefined, kind), th = make("th", name), td = make("td");
      th.scope = "row";
      td.append(...[value].flat());
      tr.append(th, td);
      body.append(tr);
    };
    if (row.gold !== undefined) line("Gold", long(row.gold));
    for (const [arm, name] of row.arms ? data.arms : [])
      if (row.arms[arm]) line(name, answer(row.arms[arm]), arm === ours ? "own" : "");
    if (row.teacher) line(row.by && row.by !== "teacher" ? row.by : "Teacher", answer(row.teacher), "own");
    if (row.reason) line("Reason", long(row.reason));
    for (const [name, value] of Object.entries(row.scores ?? {}))
      line(`${name} score`, long(`${value}${row.why?.[name] ? `: ${row.why[name]}` : ""}`));
    for (const [name, text] of Object.entries(row.why ?? {})) if (row.scores?.[name] === undefined) line(name, long(text));
    if (row.review) line("Reviewer", long(row.review));
    for (const [tag, value] of Object.entries(row.tags ?? {})) line(tag, long(value));
    return item;
  }

  function fate(row) {
    if (row.teacher) return row.dropped_by ? `Dropped by ${row.dropped_by}` : "Kept";
    const verdict = right(row, ours);
    if (verdict === undefined) return data.alone ? "Not scored" : "Held out";
    return data.graded ? `${first} ${score(row, ours)}` : verdict ? `${first} right` : `${first} wrong`;
  }

  function answer(of) {
    const parts = [];
    if (of.label !== undefined) parts.push(long(of.label));
    if (of.score !== undefined) {
      const mark = data.graded ? ` (${of.score})` : of.score >= 1 ? " ✓ right" : " ✗ wrong";
      parts.push(make("span", mark, of.score >= 1 ? "more" : "lost"));
    }
    if (of.status) parts.push(make("span", ` ${of.status}`, "none"));
    if (of.text !== undefined) {
      const box = make("div");
      box.append(long(of.text));
      parts.push(box);
    }
    return parts;
  }

  function long(text, room = 320) {
    if (/[\ud800-\udbff]/.test(text.charAt(room - 1))) room -= 1; // never half of a character
    const shown = make("bdi", text.slice(0, room), "said");
    if (text.length <= room) return shown;
    const box = make("details", undefined, "long"), summary = make("summary");
    summary.append(shown, make("span", ` … all ${text.length.toLocaleString("en")} characters`, "more"));
    box.append(summary, make("bdi", text.slice(room), "said"));
    return box;
  }

  const tables = Object.keys(data.tables);
  $("table").append(...tables.map((name) => new Option(names[name], name)));
  $("table").parentElement.hidden = tables.length < 2;
  $("table").addEventListener("change", () => open($("table").value));
  $("query").addEventListener("input", search);
  $("form").addEventListener("submit", (event) => event.preventDefault());
  $("before").addEventListener("click", () => turn(-1));
  $("after").addEventListener("click", () => turn(1));
  open(tables[0]);
  $("app").hidden = false;
})();

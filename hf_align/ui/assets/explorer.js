() => {
  // The explorer: which runs, where along one, which prompt; the server draws, this asks and points.
  const $ = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const HELD = 120; // ms that a slider rests before the server is asked
  let root, curves = {}, pools = {}, counts = {}, timers = {};
  const at = { run: null, index: 0, row: 0, order: "over_optimised", pool: null, n: 0, best: 0 };

  const begin = () => {
    root = $("#hf-align");
    if (!root || root.dataset.ready) return setTimeout(begin, 50);
    root.dataset.ready = "yes";
    document.addEventListener("change", onChange);
    document.addEventListener("input", onInput);
    document.addEventListener("submit", onSubmit);
    document.addEventListener("click", onClick);
    root.addEventListener("pointerdown", onPointer);
    root.addEventListener("pointermove", (event) => event.buttons && onPointer(event));
    slideBeta(+$("#gx-beta").value);
    $("#gx-beta-slide").max = 60;
    slideBeta(+$("#gx-beta").value);
    chart();
  };

  // ---- asking the server: an answer counts only while nothing newer was asked of the same part ----
  const send = async (body) => {
    const config = window.gradio_config || {};
    const base = (config.root || "") + (config.api_prefix || "/gradio_api");
    const sign = new URLSearchParams(location.search).get("__sign");
    const query = sign ? `?__sign=${encodeURIComponent(sign)}` : "";
    const reply = await fetch(`${base}/run/explorer${query}`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ data: [JSON.stringify(body)] }),
    });
    if (!reply.ok) throw new Error(`status ${reply.status}`);
    return JSON.parse((await reply.json()).data[0]);
  };
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));

  const ask = async (body, place) => {
    const number = (counts[body.action] = (counts[body.action] || 0) + 1);
    place?.setAttribute("aria-busy", "true");
    let reply = null;
    for (let turn = 0; turn < 6; turn++) {
      try {
        reply = await send(body);
        if (reply.code !== "retry") break;
      } catch (error) {
        reply = { code: "down", error: "The server cannot be reached; reload the page to try again." };
        if (turn === 0) say("The server does not answer. Trying again…", true, body.action);
      }
      await wait(300 * 2 ** turn);
      if (counts[body.action] !== number) return null;
    }
    if (counts[body.action] !== number) return null; // something newer was asked meanwhile
    place?.removeAttribute("aria-busy");
    // What another part said stays until that part has something new to say.
    if (!reply.error || place) $("#hf-notice").dataset.by === body.action && say("");
    if (reply.error && place) show(place, reply.error);
    else if (reply.error) say(reply.error, true, body.action);
    return reply.error ? null : reply;
  };

  const say = (text, bad = false, by = "page") => {
    const notice = $("#hf-notice");
    notice.dataset.by = by;
    notice.textContent = text;
    notice.className = text ? (bad ? "bad" : "good") : "";
  };
  const show = (place, text) => {
    const line = document.createElement("p");
    line.className = "note";
    line.textContent = text;
    place.replaceChildren(line);
  };
  const soon = (name, work) => {
    clearTimeout(timers[name]);
    timers[name] = setTimeout(work, HELD);
  };

  // ---- the runs ------------------------------------------------------------------------------
  const picked = () => all("input[name=run]:checked", root).map((box) => box.value);

  const chart = async () => {
    const runs = picked();
    for (let turn = 0; ; turn++) {
      const reply = await ask({ action: "chart", runs }, turn ? null : $("#gx-charts"));
      if (!reply) return;
      curves = reply.curves;
      pools = reply.pools;
      $("#gx-problems").innerHTML = reply.problems;
      $("#gx-notes").innerHTML = reply.notes;
      $("#gx-charts").innerHTML = reply.html || `<p class="hint">${runs.length ? "" : "Pick a run above."}</p>`;
      $("#gx-cards").innerHTML = reply.verdicts;
      settle();
      if (!reply.pending.length) break;
      say(`Still opening: ${reply.pending.join(", ")}`, false, "chart");
      await wait(500);
      if (runs.join("\n") !== picked().join("\n")) return;
    }
  };

  // A select offers what there is, and keeps what was chosen while it is there.
  const offer = (select, names, wanted) => {
    select.replaceChildren(...names.map((name) => new Option(name, name)));
    const chosen = names.includes(wanted) ? wanted : names[0] ?? null;
    if (chosen !== null) select.value = chosen;
    return chosen;
  };

  const settle = () => {
    const names = Object.keys(curves);
    const trained = names.filter((name) => curves[name].trained);
    const before = at.run;
    at.run = offer($("#gx-active"), names, at.run ?? widest(trained));
    if (at.run !== before) at.index = at.run === null ? 0 : curves[at.run].d.length - 1;
    offer($("#gx-path"), trained, $("#gx-path").value || widest(trained));
    const withPool = Object.keys(pools);
    const pool = at.pool;
    at.pool = offer($("#gx-pool"), withPool, at.pool);
    if (at.pool !== pool) at.n = 0;
    $("#gx-selecting").hidden = !withPool.length;
    $("#gx-no-pool").hidden = Boolean(withPool.length);
    $(".walk", $("#gx-curves")).hidden = at.run === null;
    if (at.run === null) for (const id of ["#gx-equal", "#gx-samples"]) $(id).replaceChildren();
    else slide();
    if (at.pool !== null) select();
    else $("#gx-best").replaceChildren();
    if (trained.length) whatIf();
    else show($("#gx-what-if"), "None of the runs picked was trained.");
  };

  // The run that went farthest while its proxy was recorded has the most to tell.
  const widest = (names) =>
    [...names].sort((a, b) =>
      Boolean(curves[b].proxy) - Boolean(curves[a].proxy) || Math.max(...curves[b].d) - Math.max(...curves[a].d))[0];

  // ---- along a run ---------------------------------------------------------------------------
  const slide = () => {
    const curve = curves[at.run], slider = $("#gx-at");
    at.index = Math.max(0, Math.min(curve.d.length - 1, at.index));
    slider.max = curve.d.length - 1;
    slider.value = at.index;
    const value = (name) => (curve[name] ? `, ${name} ${signed(curve[name][at.index])}` : "");
    const kl = curve.d[at.index] ** 2;
    const words = `${curve.counted} ${curve.steps[at.index]}, KL ${kl.toPrecision(3)} nats${value("gold")}${value("proxy")}`;
    slider.setAttribute("aria-valuetext", words);
    $("#gx-at-says").textContent = words;
    point();
    soon("at", () => {
      equal();
      read();
    });
  };
  const signed = (value) => `${value < 0 ? "\u2212" : "+"}${Math.abs(value).toFixed(2)}`;

  const point = () => {
    const curve = curves[at.run];
    for (const panel of all("[data-panel]", root)) {
      const svg = $("svg.chart", panel), values = curve[panel.dataset.panel];
      if (!svg) continue;
      const cursor = $(".cursor", svg), ring = $("circle", cursor);
      const data = svg.dataset, box = svg.viewBox.baseVal;
      const x = +data.left + (curve.d[at.index] / +data.xmax) * (box.width - data.left - data.right);
      cursor.setAttribute("visibility", "visible");
      $("line", cursor).setAttribute("transform", `translate(${x} 0)`);
      ring.setAttribute("visibility", values ? "visible" : "hidden");
      if (!values) continue;
      const share = (values[at.index] - data.ymin) / (data.ymax - data.ymin);
      const y = box.height - data.bottom - share * (box.height - data.top - data.bottom);
      ring.setAttribute("transform", `translate(${x} ${y})`);
    }
  };

  // The nearest measured point to where a chart was touched; of the active run while dragging.
  const onPointer = (event) => {
    const svg = event.target.closest?.("#gx-charts svg.chart");
    if (!svg || at.run === null) return;
    const panel = svg.closest("[data-panel]").dataset.panel, data = svg.dataset, box = svg.viewBox.baseVal;
    const where = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const wide = box.width - data.left - data.right, high = box.height - data.top - data.bottom;
    let best = null;
    for (const name of event.type === "pointerdown" ? Object.keys(curves) : [at.run]) {
      const curve = curves[name], values = curve[panel];
      curve.d.forEach((d, index) => {
        const x = +data.left + (d / +data.xmax) * wide - where.x;
        const share = values ? (values[index] - data.ymin) / (data.ymax - data.ymin) : 0;
        const y = values && event.type === "pointerdown" ? box.height - data.bottom - share * high - where.y : 0;
        const far = x * x + y * y + (values ? 0 : 1e6);
        if (!best || far < best.far) best = { name, index, far };
      });
    }
    if (best.name === at.run && best.index === at.index) return;
    at.run = best.name;
    at.index = best.index;
    $("#gx-active").value = at.run;
    slide();
  };

  const equal = async () => {
    const place = $("#gx-equal");
    const { run, index } = at;
    const reply = await ask({ action: "equal", runs: picked(), run, index }, place);
    if (reply) place.innerHTML = reply.html;
  };

  const read = async () => {
    const { run, index, row, order } = at, place = $("#gx-samples");
    const reply = await ask({ action: "read", run, index, row, order }, place);
    if (!reply) return turnable("gx-read", 0, 0);
    place.innerHTML = reply.html;
    at.row = reply.row;
    $("#gx-read-note").textContent = reply.note;
    turnable("gx-read", reply.row, reply.rows);
  };

  const turnable = (name, row, rows) => {
    $(`#${name}-row`).textContent = rows ? `${row + 1} of ${rows}` : "";
    for (const button of all(`[data-turn=${name}]`, root)) button.disabled = rows < 2;
  };

  // ---- best-of-n and what if -----------------------------------------------------------------
  const select = () => {
    const most = pools[at.pool], slider = $("#gx-n");
    at.n = Math.max(1, Math.min(most, at.n || Math.min(8, most)));
    slider.min = 1;
    slider.max = most;
    slider.value = at.n;
    slider.setAttribute("aria-valuetext", `n = ${at.n} of ${most}`);
    $("#gx-n-says").textContent = `n = ${at.n} of ${most}`;
    soon("best", async () => {
      const place = $("#gx-best");
      const reply = await ask({ action: "best", run: at.pool, n: at.n, row: at.best }, place);
      if (!reply) return turnable("gx-best", 0, 0);
      place.innerHTML = reply.html;
      at.best = reply.row;
      turnable("gx-best", reply.row, reply.rows);
    });
  };

  const slideBeta = (beta) => {
    const slider = $("#gx-beta-slide");
    slider.value = beta > 0 ? Math.max(0, Math.min(60, (Math.log10(beta) + 3) * 20)) : 0;
    slider.setAttribute("aria-valuetext", `β = ${beta}`);
    $("#gx-beta-slide-says").textContent = `β = ${beta}`;
  };

  const whatIf = () => soon("what-if", async () => {
    const beta = parseFloat($("#gx-beta").value), place = $("#gx-what-if"), run = $("#gx-path").value;
    if (!(beta >= 0)) return show(place, "Give a coefficient of 0 or more.");
    slideBeta(beta);
    const reply = await ask({ action: "what-if", runs: picked(), run, beta }, place);
    if (!reply) return;
    const open = $("details", place)?.open;
    place.innerHTML = reply.html;
    if (open) $("details", place).open = true;
  });

  // ---- events --------------------------------------------------------------------------------
  const onChange = (event) => {
    const box = event.target;
    if (box.name === "run" && box.closest("#gx-runs")) {
      if (picked().length > +root.dataset.most) {
        box.checked = false;
        return say(`At most ${root.dataset.most} runs at a time; take one out first.`, true, "chart");
      }
      chart();
    } else if (box.id === "gx-active") {
      at.run = box.value;
      at.index = curves[at.run].d.length - 1;
      slide();
    } else if (box.id === "gx-order") {
      at.order = box.value;
      at.row = 0;
      read();
    } else if (box.id === "gx-pool") {
      at.pool = box.value;
      at.n = at.best = 0;
      select();
    } else if (box.id === "gx-path") whatIf();
  };

  const onInput = (event) => {
    const { id, value } = event.target;
    if (id === "gx-at" && at.run !== null) {
      at.index = +value;
      slide();
    } else if (id === "gx-n" && at.pool !== null) {
      at.n = +value;
      select();
    } else if (id === "gx-beta") whatIf();
    else if (id === "gx-beta-slide") {
      $("#gx-beta").value = +(10 ** (value / 20 - 3)).toPrecision(2);
      whatIf();
    }
  };

  const onClick = (event) => {
    const button = event.target.closest?.("#hf-align button[data-turn]");
    if (!button) return;
    if (button.dataset.turn === "gx-read") {
      at.row += +button.dataset.by;
      read();
    } else {
      at.best += +button.dataset.by;
      select();
    }
  };

  const onSubmit = async (event) => {
    if (event.target.id !== "gx-add") return;
    event.preventDefault();
    const field = event.target.elements.namedItem("name");
    const reply = await ask({ action: "add", name: field.value });
    if (!reply) return;
    const known = all("input[name=run]", root).find((box) => box.value === reply.run);
    if (!known) {
      const label = document.createElement("label"), box = document.createElement("input"), words = document.createElement("span");
      label.className = "check";
      Object.assign(box, { type: "checkbox", name: "run", value: reply.run });
      words.textContent = reply.run;
      label.append(box, words);
      $(".runs", root).append(label);
    }
    field.value = "";
    const box = known || all("input[name=run]", root).at(-1);
    if (!box.checked && picked().length >= +root.dataset.most)
      return say(`Added. At most ${root.dataset.most} runs at a time: take one out, then pick it.`, false, "chart");
    box.checked = true;
    chart();
  };

  begin();
}

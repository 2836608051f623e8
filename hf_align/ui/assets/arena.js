() => {
  // The arena's page: asks through Gradio's queue, shows answers as they come, and what they are.
  const $ = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const VISITOR = "hf_align visitor", HISTORY = "hf_align arena history";
  const LONGEST_LINK = 8000; // characters; mail and chat cut longer ones
  const KEPT = 50; // turns of the history
  const HIDDEN = /[\u202a-\u202e\u2066-\u2069\u200b-\u200f\u061c\u2028\u2029\ufeff\u00ad]/g;
  let root, view, form, visitor = "", source = null, turn = null, phase = "idle", coloured = false;
  let value = null; // what the last message of a stream held; the next one may say only what changed
  let asked = null; // what was asked for, of the turn that is running

  const begin = () => {
    root = $("#hf-align");
    if (!root || root.dataset.ready) return setTimeout(begin, 50);
    root.dataset.ready = "yes";
    [view, form] = [$("#hf-view"), $("#hf-ask")];
    for (const dialog of all("dialog", root)) document.body.append(dialog);
    document.addEventListener("click", onClick);
    document.addEventListener("submit", onSubmit);
    document.addEventListener("keydown", onKey);
    window.addEventListener("hashchange", fromLink);
    window.addEventListener("pagehide", () => source?.close());
    visitor = kept(VISITOR, "localStorage") || "";
    fromLink();
    showHistory();
    act({ action: "hello" });
  };

  // ---- what the browser keeps ----------------------------------------------------------------
  const kept = (name, storage) => {
    try { return JSON.parse(window[storage].getItem(name)); } catch { return null; }
  };
  const keep = (name, storage, what) => {
    try { window[storage].setItem(name, JSON.stringify(what)); } catch { /* no room, or not allowed */ }
  };

  // ---- asking the server ---------------------------------------------------------------------
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  const config = () => window.gradio_config || {};
  const address = (path, query = {}) => {
    const sign = new URLSearchParams(location.search).get("__sign"); // of a private Space
    const words = new URLSearchParams(sign ? { ...query, __sign: sign } : query).toString();
    return `${config().root || ""}${config().api_prefix || "/gradio_api"}${path}${words && `?${words}`}`;
  };
  const post = (path, body, more = {}) => fetch(address(path), {
    method: "POST",
    headers: { "content-type": "application/json", "x-hf-align-visitor": visitor, ...more },
    body: JSON.stringify(body),
  });

  // What can be asked again without harm is, until the server has answered.
  const act = async (body) => {
    for (let tries = 0; ; tries++) {
      try {
        const reply = await post("/run/arena", { data: [JSON.stringify(body)] });
        if (!reply.ok) throw new Error(`status ${reply.status}`);
        const said = JSON.parse((await reply.json()).data[0]);
        if (said.code === "visitor") {
          visitor = said.visitor;
          keep(VISITOR, "localStorage", visitor);
          continue;
        }
        if (said.code !== "retry") return show(said);
        say(`${said.error}. Trying again…`, true);
      } catch (error) {
        say("The server cannot be reached. Trying again…", true);
      }
      await wait(Math.min(8000, 500 * 2 ** tries));
    }
  };

  const show = (reply) => {
    if (reply.error) say(reply.error, true);
    if (reply.html !== undefined) {
      say(reply.notice);
      turn = reply.turn;
      showTurn(reply.html);
    }
    return reply;
  };

  const showTurn = (html) => {
    view.innerHTML = html;
    paint();
  };

  const say = (text, bad = false) => {
    const notice = $("#hf-notice");
    notice.textContent = text || "";
    notice.className = text ? (bad ? "bad" : "good") : "";
  };

  const enter = (state, text = "") => {
    phase = state;
    const running = ["sending", "queued", "loading", "writing", "measuring", "stopping"].includes(state);
    const shown = $("#hf-state");
    shown.dataset.state = state;
    if (shown.textContent !== text) shown.textContent = text;
    $("button[type=submit]", form).disabled = running;
    $("button[data-do=stop]", form).disabled = !running || state === "measuring" || state === "stopping";
    if (running) view.setAttribute("aria-busy", "true");
    else view.removeAttribute("aria-busy");
  };

  // ---- a turn --------------------------------------------------------------------------------
  const settings = () => {
    const field = (name) => form.elements[name];
    const sampling = {};
    for (const name of ["temperature", "top_p", "max_new_tokens", "seed"])
      sampling[name] = field(name).valueAsNumber;
    return {
      prompt: field("prompt").value,
      models: all("input[name=models]:checked", form).map((box) => box.value),
      blind: field("blind")?.checked || false,
      sampling,
    };
  };

  const ask = async () => {
    if (source || phase === "sending") return;
    if (!form.reportValidity()) return;
    asked = settings();
    if (!asked.prompt.trim()) {
      say("Write a prompt first.", true);
      return form.elements.prompt.focus();
    }
    if (!asked.models.length) return say("Choose at least one model.", true);
    say("");
    enter("sending", "Asking…");
    [turn, value] = [null, null];
    const place = config().dependencies?.find((one) => one.api_name === "turn");
    const session = joined(crypto.getRandomValues(new Uint32Array(4)));
    try {
      const body = { data: [JSON.stringify(asked)], fn_index: place.id, session_hash: session };
      const reply = await post("/queue/join", body, await quotaHeaders());
      if (reply.status === 503) return fail("Too many people are waiting just now; ask again in a minute.");
      if (!reply.ok) throw new Error(`status ${reply.status}`);
      if (phase !== "sending") return; // stopped meanwhile
      source = new EventSource(address("/queue/data", { session_hash: session }));
    } catch (error) {
      return fail("The server cannot be reached; ask again in a moment.");
    }
    source.onmessage = (event) => onMessage(JSON.parse(event.data));
    source.onerror = () => fail("The connection was lost. What came so far is still here; ask again.");
  };
  const joined = (numbers) => [...numbers].map((number) => number.toString(36)).join("");

  // On ZeroGPU the page around this one vouches for who asks, so that it is their quota.
  const quotaHeaders = () => {
    if (parent === window || !location.hostname.endsWith(".hf.space")) return {};
    if (!window.supports_zerogpu_headers) return {};
    const channel = new MessageChannel();
    const reply = new Promise((done) => (channel.port1.onmessage = ({ data }) => done(data || {})));
    parent.postMessage("zerogpu-headers", "https://huggingface.co", [channel.port2]);
    return Promise.race([reply, wait(2000).then(() => ({}))]);
  };

  const onMessage = (message) => {
    if (message.msg === "estimation") return showPlace(message);
    if (message.msg === "process_starts") return enter("loading", "Waiting for the first words…");
    if (message.msg === "process_generating") return onStep(changed(message.output.data[0]));
    if (message.msg === "process_completed") {
      if (!message.success) return fail(words(message.output?.error));
      close();
      if (!["done", "error"].includes(phase)) enter("done", "Stopped.");
    } else if (message.msg === "unexpected_error" || message.msg === "server_stopped")
      fail("The server stopped. What came so far is still here; ask again.");
  };

  const showPlace = ({ rank, rank_eta: seconds }) => {
    if (rank === null || rank === undefined) return;
    const before = rank ? `${rank} ${rank === 1 ? "turn is" : "turns are"} before yours` : "Yours is next";
    enter("queued", `${before}${seconds ? `, about ${Math.ceil(seconds)} s` : ""}.`);
  };

  // Gradio sends the first value whole and then what changed in it.
  const changed = (data) => {
    if (!Array.isArray(data)) value = data;
    else for (const [what, , text] of data) value = what === "append" ? value + text : text;
    return JSON.parse(value);
  };

  const onStep = (step) => {
    if (step.code === "input") return fail(step.error);
    if (step.code === "begun") {
      turn = step.turn;
      view.innerHTML = step.html;
      remember();
    } else if (step.code === "done") {
      turn = step.turn;
      showTurn(step.html);
      enter("done", phase === "stopping" ? "Stopped." : "Done.");
    } else {
      step.texts.forEach((html, seat) => {
        const column = $(`[data-seat="${seat}"]`, view);
        $(".plain", column).innerHTML = html;
        $(".state", column).textContent = step.states[seat];
      });
      if (step.code === "measuring") enter(phase === "stopping" ? "stopping" : "measuring", "Measuring the answers…");
      else if (phase !== "stopping" && step.texts.some(Boolean)) enter("writing", "Writing…");
    }
  };

  const close = () => {
    source?.close();
    source = null;
  };

  const fail = (text) => {
    close();
    for (const state of all(".state", view)) if (state.textContent.endsWith("…")) state.textContent = "not finished";
    const quota = /quota/i.test(text);
    enter(quota ? "quota" : "error");
    say(quota ? `${text} The answers of this visit stay here; signing in with Hugging Face gives more.` : text, true);
  };

  // Messages of others may hold markup: only their words are shown.
  const words = (text) => {
    if (!text) return "Something went wrong on the server. What came so far is still here; ask again.";
    return new DOMParser().parseFromString(text, "text/html").body.textContent;
  };

  const stop = async () => {
    if (!["sending", "queued", "loading", "writing"].includes(phase)) return;
    if (!turn) {
      close(); // the server drops what nobody waits for
      return enter("done", "Stopped before it began.");
    }
    enter("stopping", "Stopping…");
    await act({ action: "stop", turn });
  };

  // ---- colours, copies, links ----------------------------------------------------------------
  const paint = () => {
    const button = $("button[data-do=shift]", view);
    if (!button) return;
    button.setAttribute("aria-pressed", String(coloured));
    $(".legend", view).hidden = !coloured;
    for (const output of all(".output", view)) {
      const tokens = $(".coloured", output), plain = $(".plain", output);
      if (!tokens) continue;
      tokens.hidden = !coloured;
      if (plain) plain.hidden = coloured && tokens.classList.contains("text");
    }
  };

  const copy = async (text, done) => {
    try {
      await navigator.clipboard.writeText(text);
      say(done);
      return true;
    } catch {
      return false;
    }
  };

  const copyAnswer = async (button) => {
    const text = $(".plain", button.closest(".output"));
    const done = await copy(button.dataset.text ?? text.innerText, "Copied.");
    if (done) return;
    getSelection().selectAllChildren(text);
    say("The browser did not allow it: the answer is selected, copy it with Ctrl C.", true);
  };

  const share = async () => {
    const { prompt, models, blind, sampling } = settings();
    const said = new URLSearchParams({ prompt, models: models.join(","), ...sampling });
    if (blind) said.set("blind", "1");
    const link = `${location.origin}${location.pathname}#${said}`;
    if (link.length > LONGEST_LINK) return say("This prompt is too long for a link.", true);
    const box = $("#hf-link");
    box.hidden = false;
    $("input", box).value = link;
    if (await copy(link, "The link is copied.")) return;
    $("input", box).select();
    say("Copy the link below.");
  };

  const fromLink = () => {
    const said = new URLSearchParams(location.hash.slice(1));
    if (!said.has("prompt")) return;
    const missing = fill({
      prompt: said.get("prompt"),
      models: (said.get("models") || "").split(",").filter(Boolean),
      blind: said.get("blind") === "1",
      sampling: Object.fromEntries(said),
    });
    const gone = missing.length ? ` Not here any more: ${missing.join(", ")}.` : "";
    say(`From a link: press Ask to get the answers.${gone}`, missing.length > 0);
  };

  // Puts settings into the form; returns models that are not there.
  const fill = ({ prompt, models, blind, sampling }) => {
    form.elements.prompt.value = prompt;
    for (const name of ["temperature", "top_p", "max_new_tokens", "seed"])
      if (Number.isFinite(parseFloat(sampling[name]))) form.elements[name].value = parseFloat(sampling[name]);
    const boxes = all("input[name=models]", form);
    for (const box of boxes) box.checked = !box.disabled && (!models.length || models.includes(box.value));
    if (form.elements.blind) form.elements.blind.checked = blind;
    return models.filter((key) => !boxes.some((box) => box.value === key && !box.disabled));
  };

  // ---- the history of the visit --------------------------------------------------------------
  const remember = () => {
    const before = kept(HISTORY, "sessionStorage") || [];
    const asked_at = new Date().toTimeString().slice(0, 5);
    const cut = asked.prompt.length > LONGEST_LINK;
    const prompt = cut ? asked.prompt.slice(0, LONGEST_LINK) : asked.prompt;
    const now = [{ ...asked, prompt, cut, turn, asked_at }, ...before].slice(0, KEPT);
    keep(HISTORY, "sessionStorage", now);
    showHistory();
  };

  const showHistory = () => {
    const turns = kept(HISTORY, "sessionStorage") || [];
    const list = $("#hf-history ol");
    $("#hf-history .hint").hidden = turns.length > 0;
    list.replaceChildren(...turns.map((one, place) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.do = "again";
      button.dataset.place = place;
      button.dir = "auto";
      button.textContent = one.prompt.slice(0, 120).replace(HIDDEN, (c) => `⟦U+${c.codePointAt(0).toString(16).toUpperCase()}⟧`);
      const note = document.createElement("span");
      note.className = "quiet";
      note.textContent = `${one.asked_at}, seed ${one.sampling.seed}${one.blind ? ", blind" : ""}`;
      item.append(button, note);
      return item;
    }));
  };

  const again = async (place) => {
    if (source) return say("Stop the answers first.", true);
    const one = (kept(HISTORY, "sessionStorage") || [])[place];
    if (!one) return;
    fill(one);
    enter("idle");
    await act({ action: "show", turn: one.turn });
    if (one.cut) say(`Of this long prompt only the first ${LONGEST_LINK} characters were kept.`, true);
    view.focus();
  };

  // ---- events --------------------------------------------------------------------------------
  const doThe = (what, button) => {
    if (what === "help") return $("#hf-help").open || $("#hf-help").showModal();
    if (what === "stop") return stop();
    if (what === "share") return share();
    if (what === "copy") return copyAnswer(button);
    if (what === "again") return again(+button.dataset.place);
    if (what === "seed") return (form.elements.seed.value = crypto.getRandomValues(new Uint32Array(1))[0]);
    if (what === "example") {
      form.elements.prompt.value = button.dataset.prompt;
      return form.elements.prompt.focus();
    }
    if (what === "shift") {
      coloured = !coloured;
      return paint();
    }
    if (what === "vote" || what === "reveal") {
      all(".vote button", view).forEach((one) => (one.disabled = true));
      act({ action: what, turn, choice: button.dataset.choice }).then((reply) => {
        if (!reply.html) all(".vote button", view).forEach((one) => (one.disabled = false));
        else view.focus({ preventScroll: true });
      });
    }
  };

  const onClick = (event) => {
    const button = event.target.closest?.("button[data-do]");
    if (button && (button.closest("#hf-align") || button.closest("dialog"))) doThe(button.dataset.do, button);
  };

  const onSubmit = (event) => {
    if (event.target !== form) return;
    event.preventDefault();
    ask();
  };

  const onKey = (event) => {
    const target = event.target;
    if ((event.ctrlKey || event.metaKey) && event.key === "Enter" && target === form.elements.prompt) {
      event.preventDefault();
      return ask();
    }
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || $("dialog[open]")) return;
    if (event.key === "Escape") return stop();
    if (target.matches?.("textarea, select, [contenteditable], input:not([type=radio]):not([type=checkbox])")) return;
    const done = () => event.preventDefault();
    const button = all("button[data-do=vote]", view)[["1", "2", "3", "0"].indexOf(event.key)];
    if (button && !button.disabled) return done(), doThe("vote", button);
    const key = event.key.toLowerCase();
    if (key === "c" && $("button[data-do=shift]", view)) return done(), doThe("shift");
    if (key === "p") return done(), form.elements.prompt.focus();
    if (key === "?") return done(), doThe("help");
  };

  begin();
};

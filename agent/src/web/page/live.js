(() => {
  const main = document.getElementById("main");
  const live = document.getElementById("live");
  if (!main || !window.EventSource) return;
  let busy = false, again = false, last = Date.now();
  const say = (tone, text) => {
    live.className = tone;
    if (live.textContent !== text) live.textContent = text;
  };
  // Replaces what differs and leaves all else as it is, with its focus and its scrolling.
  const morph = (old, now) => {
    if (old.isEqualNode(now)) return;
    if (old.nodeName !== now.nodeName || !old.parentNode) { old.replaceWith(now); return; }
    if (old.nodeType !== 1) { old.nodeValue = now.nodeValue; return; }
    for (const { name } of [...old.attributes]) if (!now.hasAttribute(name)) old.removeAttribute(name);
    for (const { name, value } of now.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    children(old, now);
  };
  const children = (old, now) => {
    const has = [...old.childNodes], gets = [...now.childNodes];
    gets.forEach((one, i) => has[i] ? morph(has[i], one) : old.append(one));
    has.slice(gets.length).forEach((one) => one.remove());
  };
  const pull = async () => {
    if (busy) { again = true; return; }
    busy = true;
    try {
      const answer = await fetch("/main" + location.search, { cache: "no-store" });
      if (!answer.ok) throw answer.status;
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      document.title = page.title;
      children(main, page.body);
      last = Date.now();
      say("good", "live, as of " + new Date(last).toISOString().slice(11, 19) + "Z");
    } catch { stale(); }
    busy = false;
    if (again) { again = false; pull(); }
  };
  const stale = () => say("bad", "not live: no answer for " + Math.round((Date.now() - last) / 1000) + " s");
  const stream = new EventSource("/api/v1/events");
  stream.addEventListener("change", pull);
  stream.onerror = stale;
  setInterval(() => { if (Date.now() - last > 5000) stale(); }, 1000);
})();

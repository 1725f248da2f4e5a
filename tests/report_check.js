// What is wrong with the page in this window: [texts that were looked at, sentences].
//
// Letters are compared with the ground under their middle: the nearest shape, or element with a
// colour, that lies there. The window has to be as high as the page.
(() => {
  const wrong = [], say = (what, node) => wrong.push(what + ': ' + (node.textContent || node.tagName)
    .trim().slice(0, 60));
  const parse = text => (text.match(/[\d.]+/g) || []).map(Number);
  const seen = text => { const c = parse(text); return c.length >= 3 && (c.length < 4 || c[3] > .5) };
  const light = c => { const f = v => { v /= 255; return v <= .04045 ? v / 12.92 :
    ((v + .055) / 1.055) ** 2.4 }; return .2126 * f(c[0]) + .7152 * f(c[1]) + .0722 * f(c[2]) };
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + .05) / (y + .05) };
  const ground = (node, box) => {
    const x = box.left + box.width / 2, y = box.top + box.height / 2;
    for (const other of document.elementsFromPoint(x, y)) {
      if (other === node || other.closest('text')) continue;
      const style = getComputedStyle(other);
      if (other instanceof SVGGeometryElement && seen(style.fill)) return parse(style.fill);
      if (!(other instanceof SVGElement) && seen(style.backgroundColor))
        return parse(style.backgroundColor);
    }
    return [255, 255, 255];
  };
  const root = document.documentElement;
  if (root.scrollWidth > innerWidth) say('wider than the window, ' + root.scrollWidth, document.body);
  for (const node of document.querySelectorAll('body *')) {
    const box = node.getBoundingClientRect(), inside = node.closest('.wide, .drawing, pre, nav ul');
    if (!inside && box.width && (box.right > innerWidth + 1 || box.left < -1))
      say('beyond the edge', node);
  }
  for (const svg of document.querySelectorAll('figure svg')) {
    const box = svg.getBoundingClientRect();
    if (box.width < 200 || box.height < 100) say('figure of ' + box.width + ' x ' + box.height, svg);
    const drawn = svg.querySelectorAll('path, use, image, rect').length;
    if (drawn < 5) say('figure with ' + drawn + ' shapes', svg);
    for (const use of svg.querySelectorAll('use'))
      if (!document.querySelector(use.getAttribute('xlink:href') || use.getAttribute('href')))
        say('shape that is not there', use);
    for (const text of svg.querySelectorAll('text')) {
      const own = text.getBoundingClientRect();
      if (own.left < box.left - 2 || own.right > box.right + 2 || own.top < box.top - 2 ||
          own.bottom > box.bottom + 2) say('text cut off', text);
    }
    const texts = [...svg.querySelectorAll('text')].filter(t => t.textContent.trim());
    const boxes = texts.map(t => t.getBoundingClientRect());
    for (let i = 0; i < texts.length; i++) for (let j = i + 1; j < texts.length; j++) {
      const [a, b] = [boxes[i], boxes[j]];
      const w = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const h = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (w > 3 && h > Math.min(a.height, b.height) * .45) say('text over ' + texts[j].textContent,
        texts[i]);
    }
  }
  let count = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode, node = text.parentElement;
    if (!text.data.trim() || !node.checkVisibility()) continue;
    const range = document.createRange(); range.selectNodeContents(text);
    const box = range.getBoundingClientRect(), style = getComputedStyle(node);
    if (!box.width || box.right < 0 || box.left > innerWidth) continue;
    const svg = node.ownerSVGElement, scale = svg ? svg.getBoundingClientRect().width /
      svg.viewBox.baseVal.width : 1;
    const size = parseFloat(style.fontSize) * scale;
    if (size < LEAST_PIXELS) say('letters of ' + size.toFixed(1) + ' pixels', node);
    const clip = node.closest('.wide, .drawing, pre, nav ul');
    if (clip) { const edge = clip.getBoundingClientRect(); if (box.left + box.width / 2 > edge.right)
      continue; }
    const found = ratio(parse(svg ? style.fill : style.color), ground(node, box));
    if (found < LEAST_CONTRAST) say('contrast ' + found.toFixed(2), node);
    count++;
  }
  return [count, wrong];
})()

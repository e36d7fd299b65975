// Symbols of a word -> the pieces that byte pair encoding merges them into.

/**
 * Merge neighbours, those of the least rank first and of equal ranks the leftmost, until none is
 * left.
 *
 * @param {string[]} symbols
 * @param {(left: string, right: string) => number | undefined} rank of a pair; undefined merges
 *     never.
 */
export function mergePairs(symbols, rank) {
  const text = [...symbols];
  const next = text.map((_, i) => i + 1),
    previous = text.map((_, i) => i - 1);
  const heap = new Heap();

  function offer(left) {
    const right = next[left];
    if (left < 0 || right >= text.length) return;
    const found = rank(text[left], text[right]);
    if (found !== undefined) heap.push({ rank: found, left, a: text[left], b: text[right] });
  }

  for (let i = 0; i < text.length; i++) offer(i);
  for (let best; (best = heap.pop());) {
    const { left, a, b } = best,
      right = next[left];
    if (text[left] !== a || text[right] !== b) continue; // one of them was merged since
    text[left] = a + b;
    text[right] = null;
    next[left] = next[right];
    if (next[left] < text.length) previous[next[left]] = left;
    offer(previous[left]);
    offer(left);
  }
  return text.filter((piece) => piece !== null);
}

/** Entries by rank, then from the left. */
class Heap {
  entries = [];

  before(i, j) {
    const a = this.entries[i],
      b = this.entries[j];
    return a.rank !== b.rank ? a.rank < b.rank : a.left < b.left;
  }

  swap(i, j) {
    [this.entries[i], this.entries[j]] = [this.entries[j], this.entries[i]];
  }

  push(entry) {
    let i = this.entries.push(entry) - 1;
    for (let up; i && this.before(i, (up = (i - 1) >> 1)); i = up) this.swap(i, up);
  }

  pop() {
    const { entries } = this;
    if (!entries.length) return undefined;
    this.swap(0, entries.length - 1);
    const found = entries.pop();
    for (let i = 0, down; (down = 2 * i + 1) < entries.length; i = down) {
      if (down + 1 < entries.length && this.before(down + 1, down)) down++;
      if (!this.before(down, i)) break;
      this.swap(i, down);
    }
    return found;
  }
}

/** The texts between `words` in `text`, and the words, in order; the longest word counts. */
export function splitAt(text, words) {
  if (!words.length) return [{ text, word: false }];
  const escaped = [...words]
    .sort((a, b) => b.length - a.length)
    .map((w) => w.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&"));
  return text
    .split(new RegExp(`(${escaped.join("|")})`))
    .map((part, i) => ({ text: part, word: i % 2 === 1 }))
    .filter((part) => part.text);
}

/** The piece that stands for a byte where no other does. */
export function bytePiece(byte) {
  return `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`;
}

/** UTF-8 bytes as text; each of those that are part of no character is U+FFFD of its own. */
export function textOfBytes(bytes) {
  const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  let found = "";
  for (let at = 0; at < bytes.length;) {
    const lead = bytes[at],
      size = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    try {
      found += strict.decode(Uint8Array.from(bytes.slice(at, at + size)));
      at += size;
    } catch {
      found += "\ufffd";
      at++;
    }
  }
  return found;
}

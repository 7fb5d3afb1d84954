/**
 * A list that is read again while somebody looks at it: what is shown stays in its place, with what is new in it. What
 * has left the list is kept and marked, what has come is only counted, until the person asks for it.
 */

/**
 * @template {Record<string, any>} Row
 * @param {Row[]} shown newest first
 * @param {Row[]} fresh the same part of the list, read again
 * @param {object} given
 * @param {(row: Row) => string} given.key
 * @param {(row: Row) => string} given.at by what the list is ordered
 * @param {string} given.readTo the oldest `at` that was looked at; "" when the list was read to its end
 * @returns {{rows: (Row & {isGone?: boolean})[], added: number, gone: number}}
 */
export function merged(shown, fresh, { key, at, readTo }) {
  const found = new Map(fresh.map((row) => [key(row), row]));
  const rows = shown.map((row) => found.get(key(row)) ?? (at(row) > readTo ? { ...row, isGone: true } : row));
  const known = new Set(shown.map(key));
  const newest = shown.length ? at(shown[0]) : "";
  const added = fresh.filter((row) => !known.has(key(row)) && at(row) >= newest).length;
  return { rows, added, gone: rows.filter(({ isGone }) => isGone).length };
}

/** Like "12 new, 3 moved on: show". @param {number} added @param {number} gone @param {boolean} [isExact] */
export function newsWords(added, gone, isExact = true) {
  const parts = [added && `${added}${isExact ? "" : "+"} new`, gone && `${gone} moved on`].filter(Boolean);
  return parts.length ? `${parts.join(", ")} – show` : "";
}

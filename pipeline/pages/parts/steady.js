/**
 * A list that is read again while a person looks at it: its rows stay in place and are updated. Rows that have left the
 * list are marked, new ones are only counted, until the person asks to see them.
 */

/**
 * @template {Record<string, any>} Row
 * @param {Row[]} shown newest first
 * @param {Row[]} fresh the same part of the list, read again
 * @param {object} given
 * @param {(row: Row) => string} given.key
 * @param {(row: Row) => string} given.at the time by which the list is ordered
 * @param {string} given.readTo the oldest `at` that was read; "" when the list was read to its end
 * @returns {{rows: (Row & {isUnlisted?: boolean})[], added: number, unlisted: number}}
 */
export function merged(shown, fresh, { key, at, readTo }) {
  const found = new Map(fresh.map((row) => [key(row), row]));
  const rows = shown.map((row) => found.get(key(row)) ?? (at(row) > readTo ? { ...row, isUnlisted: true } : row));
  const known = new Set(shown.map(key));
  const newest = shown.length ? at(shown[0]) : "";
  const added = fresh.filter((row) => !known.has(key(row)) && at(row) >= newest).length;
  return { rows, added, unlisted: rows.filter(({ isUnlisted }) => isUnlisted).length };
}

/** Like "12 new, 3 moved on: show". @param {number} added @param {number} unlisted @param {boolean} [isExact] */
export function newsWords(added, unlisted, isExact = true) {
  const parts = [added && `${added}${isExact ? "" : "+"} new`, unlisted && `${unlisted} moved on`].filter(Boolean);
  return parts.length ? `${parts.join(", ")} – show` : "";
}

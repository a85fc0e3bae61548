/** How results look to people. Pure. */

/**
 * Nothing that a node or a controller says may steer the terminal: control characters and those that turn the direction
 * of text go.
 */
export function clean(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu, '');
}

export type Cell = string | number | null;

const shown = (cell: Cell) => (cell === null || cell === '' ? '-' : clean(String(cell)));

/** Rows under their titles. A column whose title begins with `>` is aligned to the right. */
export function table(titles: readonly string[], rows: readonly (readonly Cell[])[]): string {
  const lines = [titles.map((title) => title.replace(/^>/, '')), ...rows.map((row) => row.map(shown))];
  const widths = titles.map((_, column) => Math.max(...lines.map((line) => (line[column] ?? '').length)));
  const format = (line: readonly string[]) =>
    line
      .map((cell, column) => {
        const width = widths[column] ?? 0;
        return titles[column]?.startsWith('>') ? cell.padStart(width) : cell.padEnd(width);
      })
      .join('  ')
      .trimEnd();
  return lines.map(format).join('\n');
}

/** Names and values, one a line. */
export function fields(entries: readonly (readonly [string, Cell])[]): string {
  const width = Math.max(...entries.map(([name]) => name.length));
  return entries.map(([name, value]) => `${name.padEnd(width)}  ${shown(value)}`).join('\n');
}

/** How long ago, or in how long, roughly. @param at ISO time; @param now milliseconds since the epoch */
export function ago(at: string | null, now: number): string | null {
  if (at === null) return null;
  const ms = now - Date.parse(at);
  return ms < 0 ? `in ${span(-ms)}` : `${span(ms)} ago`;
}

export function span(ms: number): string {
  const seconds = Math.round(ms / 1000);
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172_800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86_400)} d`;
}

const UNITS: Readonly<Record<string, number>> = { s: 1, m: 60, h: 3600, d: 86_400 };

/** Seconds of `90s`, `30m`, `2h`, `7d`; null where it is no such thing. */
export function duration(text: string): number | null {
  const [, count, unit = ''] = /^(\d{1,6})([smhd])$/.exec(text) ?? [];
  const seconds = UNITS[unit];
  return count === undefined || seconds === undefined ? null : Number(count) * seconds;
}

/** Milliseconds since the epoch of an ISO time, or of a duration from now on; null where it is neither. */
export function moment(text: string, now: number): number | null {
  const seconds = duration(text);
  if (seconds !== null) return now + seconds * 1000;
  const at = /^\d{4}-\d\d-\d\dT\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:\d\d)$/.test(text)
    ? Date.parse(text)
    : NaN;
  return Number.isNaN(at) ? null : at;
}

/** What the demo shows: lines with the time they came at, tables, and colour where there is a terminal to show it. */
import { styleText } from 'node:util';

type Style = Parameters<typeof styleText>[0];

const started = performance.now();
const colour = process.stdout.isTTY && process.env.NO_COLOR === undefined;

export function paint(style: Style, text: string): string {
  return colour ? styleText(style, text) : text;
}

export function say(text = ''): void {
  process.stdout.write(`${text}\n`);
}

/** A line with the seconds since the start. */
export function step(text: string): void {
  const seconds = ((performance.now() - started) / 1000).toFixed(1).padStart(6);
  say(`${paint('gray', `${seconds} s`)}  ${text}`);
}

export function heading(text: string): void {
  say(`\n${paint('bold', text)}`);
}

export const milliseconds = (ms: number) => `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;

/** Columns as wide as what is in them; the first row is the head. */
export function table(rows: readonly (readonly string[])[]): string {
  const widths = (rows[0] ?? []).map((_, column) =>
    Math.max(...rows.map((row) => (row[column] ?? '').length)),
  );
  const line = (row: readonly string[]) =>
    row
      .map((cell, column) => cell.padEnd(widths[column] ?? 0))
      .join('  ')
      .trimEnd();
  const [head = [], ...body] = rows;
  return [paint('gray', `          ${line(head)}`), ...body.map((row) => `          ${line(row)}`)].join(
    '\n',
  );
}

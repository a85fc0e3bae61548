/** What the run found: printed as it goes, and written as JSON at the end. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { loadavg } from 'node:os';
import { join } from 'node:path';
import type { Machine } from './machine.ts';
import { type Cell, figure, renderTable } from './table.ts';

/** A figure against what it must reach. A bench judges, it never fails: what is not met is named with its measure. */
export interface Verdict {
  readonly id: string;
  readonly what: string;
  readonly value: number;
  readonly target: number;
  readonly better: 'more' | 'less';
  readonly unit: string;
  readonly met: boolean;
}

export class Report {
  readonly #started = new Date();
  readonly #options: object;
  readonly #machine: Machine;
  readonly #measures: Record<string, unknown> = {};
  readonly #verdicts: Verdict[] = [];

  constructor(machine: Machine, options: object) {
    this.#machine = machine;
    this.#options = options;
    console.log(`${renderTable(['machine', ''], Object.entries(machine) as [string, Cell][])}\n`);
  }

  /** What is being done, for whoever is watching. */
  step(text: string): void {
    const seconds = ((Date.now() - this.#started.getTime()) / 1000).toFixed(0).padStart(4);
    console.log(`${seconds} s  ${text}`);
  }

  /** Prints a table under its title. */
  table(title: string, columns: readonly string[], rows: readonly (readonly Cell[])[]): void {
    console.log(`\n── ${title}  (load ${figure(loadavg()[0] ?? 0)})\n${renderTable(columns, rows)}\n`);
  }

  /** Raw figures for the JSON. */
  record(name: string, data: unknown): void {
    this.#measures[name] = data;
  }

  judge(id: string, what: string, value: number, better: 'more' | 'less', target: number, unit = '×'): void {
    const met = better === 'more' ? value >= target : value <= target;
    this.#verdicts.push({ id, what, value, target, better, unit, met });
  }

  /** Prints the verdicts and writes `<folder>/<date>.json`. @returns the file */
  finish(folder: string): string {
    this.table(
      'What it must reach',
      ['measure', 'measured', 'target', ''],
      this.#verdicts.map(({ id, what, value, better, target, unit, met }) => [
        `(${id}) ${what}`,
        `${figure(value)} ${unit}`,
        `${better === 'more' ? '≥' : '≤'} ${target.toLocaleString('en')} ${unit}`,
        met ? 'met' : 'NOT MET',
      ]),
    );
    mkdirSync(folder, { recursive: true });
    const file = join(folder, `${this.#started.toISOString().replace(/[:.]/g, '-')}.json`);
    const body = {
      startedAt: this.#started.toISOString(),
      finishedAt: new Date().toISOString(),
      loadAtEnd: loadavg(),
      options: this.#options,
      machine: this.#machine,
      verdicts: this.#verdicts,
      measures: this.#measures,
    };
    writeFileSync(file, `${JSON.stringify(body, null, 2)}\n`);
    return file;
  }
}

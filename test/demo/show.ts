/** What the demo looks like: colours and a spinner on a terminal, plain lines anywhere else. */

export interface Table {
  readonly head: readonly string[];
  readonly rows: readonly (readonly string[])[];
}

const FRAMES = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];
const CODES = { bold: '1', dim: '2', red: '31', green: '32', cyan: '36' } as const;

export class Show {
  readonly #out: NodeJS.WriteStream;
  readonly #fancy: boolean;
  #last = performance.now();

  /** @param out where it all goes; colours and motion only where that is a terminal and NO_COLOR is not set */
  constructor(out: NodeJS.WriteStream = process.stdout) {
    this.#out = out;
    this.#fancy = out.isTTY === true && !process.env.NO_COLOR;
  }

  paint(style: keyof typeof CODES, text: string): string {
    return this.#fancy ? `\x1b[${CODES[style]}m${text}\x1b[0m` : text;
  }

  line(text = ''): void {
    this.#out.write(`${text}\n`);
  }

  heading(text: string): void {
    this.line();
    this.line(this.paint('bold', text));
  }

  /** Something that is done, with the time since the last one. */
  done(text: string): void {
    this.#mark('green', '✓', text, performance.now() - this.#last);
    this.#last = performance.now();
  }

  /** Does something, with a spinner while it lasts, and says how long it took. The returned text completes the line. */
  async step<T>(text: string, work: () => Promise<T>, tell: (result: T) => string = () => ''): Promise<T> {
    const since = performance.now();
    const rest = this.#spin(text);
    try {
      const result = await work();
      rest();
      this.#mark('green', '✓', `${text}${tell(result)}`, performance.now() - since);
      return result;
    } catch (error) {
      rest();
      this.#mark('red', '✗', text, performance.now() - since);
      throw error;
    } finally {
      this.#last = performance.now();
    }
  }

  #mark(style: 'green' | 'red', mark: string, text: string, ms: number): void {
    const time = ms < 1000 ? `${ms.toFixed(0)} ms` : `${(ms / 1000).toFixed(1)} s`;
    this.line(`  ${this.paint(style, mark)} ${this.paint('dim', time.padStart(8))}  ${text}`);
  }

  #spin(text: string): () => void {
    if (!this.#fancy) return () => undefined;
    let frame = 0;
    const timer = setInterval(() => {
      frame = (frame + 1) % FRAMES.length;
      this.#out.write(`\r  ${this.paint('cyan', FRAMES[frame] ?? '')}           ${text}`);
    }, 80);
    return () => {
      clearInterval(timer);
      this.#out.write('\r\x1b[2K');
    };
  }

  table({ head, rows }: Table): void {
    const widths = head.map((title, column) =>
      Math.max(title.length, ...rows.map((row) => row[column]?.length ?? 0)),
    );
    const format = (row: readonly string[]) =>
      row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join('  ');
    this.line(`    ${this.paint('dim', format(head).trimEnd())}`);
    for (const row of rows) this.line(`    ${format(row).trimEnd()}`);
  }

  /** One promise, held or not. */
  verdict(name: string, failure: string | undefined, ms: number): void {
    const word = failure === undefined ? this.paint('green', 'pass') : this.paint('red', 'FAIL');
    const time = this.paint('dim', `${(ms / 1000).toFixed(1)} s`.padStart(7));
    this.line(`  ${word} ${time}  ${name}${failure === undefined ? '' : `: ${failure}`}`);
  }
}

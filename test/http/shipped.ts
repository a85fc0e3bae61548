/** The controller as it ships, in a process of its own: to be ended in the middle of something, and started again. */
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CONTROLLER } from '../lab/bundles.ts';
import { Program } from '../lab/process.ts';
import { freePort } from '../ports.ts';
import { Api } from './controller.ts';

export class ShippedController extends Api {
  readonly brokerUrl: string;
  readonly #env: Readonly<Record<string, string>>;
  readonly #folder: string;
  #program: Program;

  private constructor(
    url: string,
    token: string,
    folder: string,
    env: Record<string, string>,
    first: Program,
  ) {
    super(url, token);
    this.brokerUrl = `mqtt://${env.KATAFRACT_MQTT_LISTEN}`;
    this.#folder = folder;
    this.#env = env;
    this.#program = first;
  }

  /** On free ports, with a data directory of its own. Resolves when it serves. */
  static async run(databaseUrl: string, extra: Record<string, string> = {}): Promise<ShippedController> {
    const folder = await mkdtemp(join(tmpdir(), 'katafract-shipped-'));
    const [http, mqtt] = [await freePort(), await freePort()];
    const env = {
      DATABASE_URL: databaseUrl,
      KATAFRACT_DATA_DIR: folder,
      KATAFRACT_API_LISTEN: `127.0.0.1:${http}`,
      KATAFRACT_MQTT_LISTEN: `127.0.0.1:${mqtt}`,
      KATAFRACT_RATE_LIMIT_PER_MINUTE: '0',
      KATAFRACT_ANONYMOUS_LIMIT_PER_MINUTE: '0',
      ...extra,
    };
    const program = await launch(folder, env);
    const token = (await readFile(join(folder, 'operator-token'), 'utf8')).trim();
    return new ShippedController(`http://127.0.0.1:${http}`, token, folder, env, program);
  }

  /** The process that runs, or ran last. */
  get program(): Program {
    return this.#program;
  }

  kill(): Promise<number | string> {
    return this.#program.stop('SIGKILL');
  }

  /** After it has ended. */
  async start(): Promise<void> {
    this.#program = await launch(this.#folder, this.#env);
  }

  async restart(): Promise<void> {
    await this.kill();
    await this.start();
  }

  /** Ends it, and takes its data directory away. */
  async close(): Promise<void> {
    await this.#program.stop();
    await rm(this.#folder, { recursive: true });
  }
}

async function launch(folder: string, env: Readonly<Record<string, string>>): Promise<Program> {
  const program = new Program(process.execPath, [CONTROLLER], join(folder, 'controller.log'), { env });
  await program.waitFor(/Operator token/);
  return program;
}

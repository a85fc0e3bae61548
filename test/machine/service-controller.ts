/** The controller as its package installs it: a service of systemd on a host of the lab, configured as an operator does. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { API_PORT, type ApiResponse, call, expectOk, MESH_PORT, MQTT_PORT } from '../lab/controller.ts';
import type { Host } from '../lab/host.ts';
import { cables } from '../lab/network.ts';
import { waitFor } from '../lab/wait.ts';
import type { Container } from './container.ts';

export interface NodeView {
  readonly id: string;
  readonly connected: boolean;
  readonly agentVersion: string | null;
  readonly lastSeenAt: string | null;
  readonly health: { readonly dns: string } | null;
}

export class ServiceController {
  readonly machine: Container;
  readonly #host: Host;
  readonly #address: string;
  readonly #mesh: string;
  /** From the machine that the tests run on: with all routes, and with those for apps. */
  api = '';
  #publicApi = '';

  constructor(host: Host, machine: Container) {
    this.#host = host;
    this.machine = machine;
    const [wan, mesh] = cables.artemis();
    if (!wan || !mesh) throw new Error('artemis has two cables');
    this.#address = wan.ipv4;
    this.#mesh = mesh.ipv4;
  }

  /** For nodes, on the mesh. */
  get meshUrl(): string {
    return `http://${this.#mesh}:${MESH_PORT}`;
  }

  /** Writes its settings where an operator would, and starts it anew. */
  async configure(): Promise<void> {
    const settings = {
      KATAFRACT_API_LISTEN: `${this.#address}:${API_PORT}`,
      KATAFRACT_MESH_LISTEN: `${this.#mesh}:${MESH_PORT}`,
      KATAFRACT_PUBLIC_URL: `http://${this.#address}:${API_PORT}`,
      KATAFRACT_MQTT_LISTEN: `${this.#mesh}:${MQTT_PORT}`,
      KATAFRACT_MQTT_PUBLIC_URL: `mqtt://${this.#mesh}:${MQTT_PORT}`,
    };
    const text = Object.entries(settings).map(([name, value]) => `${name}=${value}\n`);
    writeFileSync(join(this.machine.root, 'etc/default/katafract-controller'), text.join(''));
    await this.machine.exec('systemctl', ['restart', 'katafract-controller']);
    this.#publicApi = `http://127.0.0.1:${(await this.#host.forward(this.#address, API_PORT)).port}`;
    this.api = `http://127.0.0.1:${(await this.#host.forward(this.#mesh, MESH_PORT)).port}`;
  }

  async ready(): Promise<void> {
    await waitFor('the controller to be ready', async () => (await fetch(`${this.api}/readyz`)).ok);
  }

  /** An operator's call. Throws where the answer is an error. */
  async operate<T>(method: string, path: string, body?: object): Promise<T> {
    const token = readFileSync(
      join(this.machine.root, 'var/lib/katafract-controller/operator-token'),
      'utf8',
    ).trim();
    return expectOk(await call<T>(this.api, method, path, token, body), `${method} ${path}`);
  }

  /** An app's call with a Sigil, whatever the answer. */
  app<T>(method: string, path: string, sigil: string, body?: object): Promise<ApiResponse<T>> {
    return call<T>(this.#publicApi, method, path, sigil, body);
  }

  /** The node has two tunnels, each of which is to be as lasting as one. */
  async joinToken(node: string, endpoint: string): Promise<string> {
    const body = { region: node.slice(0, 3), node, endpoint, tunnels: 2 };
    return (await this.operate<{ token: string }>('POST', '/v1/admin/join-tokens', body)).token;
  }

  async node(id: string): Promise<NodeView | undefined> {
    const { items } = await this.operate<{ items: NodeView[] }>('GET', '/v1/admin/nodes');
    return items.find((node) => node.id === id);
  }

  async mintSigil(): Promise<string> {
    const expiresAt = new Date(Date.now() + 86_400_000).toISOString();
    return (await this.operate<{ sigil: string }>('POST', '/v1/admin/sigils', { tier: 'pro', expiresAt }))
      .sigil;
  }
}

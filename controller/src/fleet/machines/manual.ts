/**
 * The provider where there is none: a person sets the machine up. Nothing is made, nothing is taken away; the machine
 * waits until somebody has given a host the cloud-init that the API shows, and its node has joined.
 */
import type { Provider } from './provider.ts';

export function manualProvider(): Provider {
  return {
    name: 'manual',
    automatic: false,
    create: async ({ machine }) => ({ machine, ref: machine, address: null }),
    remove: async () => undefined,
    list: async () => [],
  };
}

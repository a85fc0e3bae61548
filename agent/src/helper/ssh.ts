/**
 * SSH for the mesh alone: a drop-in of sshd's, keys only, root only from the mesh. Whoever switches that on must not lock
 * himself out, so it is refused while there is no way in by the mesh, while nobody has a key, and while somebody is
 * logged in by the way that would be closed.
 */
import { isInNet4 } from '@katafract/shared/addresses';
import { KatafractError } from '@katafract/shared/errors';
import { z } from 'zod';
import type { HelperPorts } from './ports.ts';
import type { Request } from './requests.ts';
import { COMMANDS, runCommand } from './system.ts';

/** RFC 6598, which Headscale and Tailscale use as well. */
export const MESH4 = '100.64.0.0/10';
export const DROP_IN = 'etc/ssh/sshd_config.d/10-katafract.conf';

const TEXT = `# Written by katafract-helper: SSH is for the mesh. Changes are overwritten.
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin no
Match Address ${MESH4}
  PermitRootLogin prohibit-password
Match all
`;

const Addresses = z.array(
  z.object({
    operstate: z.string().optional(),
    flags: z.array(z.string()).optional(),
    addr_info: z.array(z.object({ local: z.string() })).optional(),
  }),
);

/**
 * @throws KatafractError `lockout_no_mesh`, `lockout_no_key`, `lockout_session`: nothing was changed; `sshd_refused`
 * where sshd does not take the file: it is as before
 */
export async function ssh(ports: HelperPorts, { fromMesh }: Request<'ssh'>): Promise<void> {
  const before = await ports.files.read(DROP_IN);
  const wanted = fromMesh ? TEXT : null;
  if (before === wanted) return;
  if (fromMesh) await guard(ports);
  if (wanted === null) await ports.files.remove(DROP_IN);
  else await ports.files.write(DROP_IN, wanted);
  try {
    await runCommand(ports.exec, COMMANDS.checkSsh);
  } catch (cause) {
    if (before === null) await ports.files.remove(DROP_IN);
    else await ports.files.write(DROP_IN, before);
    throw new KatafractError('sshd_refused', 'sshd does not take the restriction; it is as before', {
      cause,
    });
  }
  await runCommand(ports.exec, COMMANDS.reloadSsh);
}

async function guard({ exec, files }: HelperPorts): Promise<void> {
  const links = Addresses.parse(JSON.parse(await runCommand(exec, COMMANDS.addresses)));
  const up = links.filter(({ flags }) => flags?.includes('UP'));
  const addresses = up.flatMap(({ addr_info }) => addr_info ?? []).map(({ local }) => local);
  if (!addresses.some((address) => !address.includes(':') && isInNet4(address, MESH4))) {
    throw new KatafractError(
      'lockout_no_mesh',
      'this machine has no address in the mesh: nobody could log in',
    );
  }
  const keys = await files.read('root/.ssh/authorized_keys');
  if (!/^\s*(?!#)\S+ \S+/m.test(keys ?? '')) {
    throw new KatafractError('lockout_no_key', 'root has no authorized key: nobody could log in');
  }
  const sessions = (await runCommand(exec, COMMANDS.sshSessions))
    .split('\n')
    .filter((line) => line.trim() !== '');
  if (sessions.some((line) => !fromInside(line))) {
    throw new KatafractError('lockout_session', 'somebody is logged in from outside of the mesh');
  }
}

/** A row of `ss -Htn`: the last column is the other end, `100.64.0.9:51022` or `[::1]:40000`. */
function fromInside(row: string): boolean {
  const peer = row.trim().split(/\s+/).at(-1) ?? '';
  const address = peer.slice(0, peer.lastIndexOf(':')).replace(/^\[(?:::ffff:)?|\]$/g, '');
  if (address.includes(':')) return address === '::1';
  return isInNet4(address, MESH4) || isInNet4(address, '127.0.0.0/8');
}

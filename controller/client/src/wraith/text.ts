/** What `wraith` prints. Pure. */
import type { Exit, Region } from '@katafract/shared/api';
import { type FailoverStatus, REASONS } from '../failover/manager.ts';
import type { Status } from './commands.ts';

export function statusText(status: Status): string {
  const { exit, handshakeAgeMs, rxBytes = 0, txBytes = 0, standbys } = status;
  const lines = [status.interface === undefined ? 'down' : `${status.interface}: ${status.state}`];
  if (status.state === 'broken')
    lines.push('  traffic is held back; `wraith up` repairs, `wraith down` gives up');
  if (status.state === 'up') {
    lines.push(`  exit       ${exit === undefined ? 'not one of this peer' : exitText(exit)}`);
    lines.push(
      `  handshake  ${typeof handshakeAgeMs === 'number' ? `${ageText(handshakeAgeMs)} ago` : 'none yet'}`,
    );
    lines.push(`  received   ${bytesText(rxBytes)}, sent ${bytesText(txBytes)}`);
    if (status.watch !== undefined) lines.push(`  watched    ${watchText(status.watch)}`);
  }
  return [...lines, ...standbys.map((other) => `  ${other.role.padEnd(10)} ${exitText(other)}`)].join('\n');
}

function watchText({ exit, since, reason, home, waiting }: FailoverStatus): string {
  const away = home === null || home === exit ? '' : `, home is ${home}`;
  const why = waiting === null ? '' : `; waiting: ${waiting}`;
  return `since ${new Date(since).toISOString()}: ${REASONS[reason]}${away}${why}`;
}

function exitText(exit: Exit): string {
  return `${exit.node} (${exit.region}) ${exit.endpoint}`;
}

export function ageText(ms: number): string {
  const seconds = Math.floor(ms / 1000);
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

export function bytesText(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  const power = bytes < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(bytes) / 10));
  const value = bytes / 1024 ** power;
  return `${power === 0 ? value : value.toFixed(1)} ${units[power]}`;
}

export function regionsText(regions: readonly Region[]): string {
  const rows = regions.map(({ id, country, name, exits, available }) => {
    const count = `${exits.length} ${exits.length === 1 ? 'exit' : 'exits'}`;
    return [id.padEnd(16), country, name.padEnd(20), count, available ? '' : '(full)'].join('  ').trimEnd();
  });
  return rows.join('\n');
}

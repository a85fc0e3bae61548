/** What the fleet does by itself, for the table of jobs and for those who move the peers. */
export { createDrainMetrics, type Emptying, finishDrains, nodesToEmpty } from './drains.ts';
export { hetznerProvider } from './machines/hetzner.ts';
export { labProvider } from './machines/lab.ts';
export { DECIDE, Machines, STEP } from './machines/machines.ts';
export { manualProvider } from './machines/manual.ts';
export type { Provider } from './machines/provider.ts';
export { userDataFor } from './machines/user-data.ts';
export { Reboots } from './upkeep/reboots.ts';
export { Rollouts, type UpkeepDeps } from './upkeep/rollouts.ts';
export { Watch } from './watch.ts';

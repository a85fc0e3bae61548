/** What the fleet does by itself, for the table of jobs and for those who move the peers. */
export { createDrainMetrics, type Emptying, finishDrains, nodesToEmpty } from './drains.ts';
export { Watch } from './watch.ts';

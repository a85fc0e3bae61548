/** What goes wrong, how often: probabilities per event, and times in milliseconds. */
export interface Faults {
  /** A message between the two sides is lost, comes twice, is damaged on the way. */
  readonly lose: number;
  readonly double: number;
  readonly damage: number;
  /** Longest time a message takes; they overtake one another. */
  readonly delay: number;
  /** A call to the kernel, the host, the disk, the database, the broker fails. */
  readonly kernel: number;
  readonly host: number;
  readonly disk: number;
  readonly database: number;
  readonly broker: number;
  /** Longest time a call takes. */
  readonly slow: number;
}

export const CALM: Faults = {
  lose: 0,
  double: 0,
  damage: 0,
  delay: 0,
  kernel: 0,
  host: 0,
  disk: 0,
  database: 0,
  broker: 0,
  slow: 4,
};

/** Weather to choose from. */
export const WEATHER = {
  calm: CALM,
  slow: { ...CALM, delay: 400, slow: 300 },
  crawling: { ...CALM, delay: 6000, slow: 3000 },
  lossy: { ...CALM, lose: 0.3, delay: 100 },
  doubling: { ...CALM, double: 0.5, delay: 1500 },
  damaging: { ...CALM, damage: 0.3, double: 0.2 },
  'deaf kernel': { ...CALM, kernel: 0.5, slow: 50 },
  'dead kernel': { ...CALM, kernel: 1 },
  'failing host': { ...CALM, host: 0.5, slow: 50 },
  'full disk': { ...CALM, disk: 1 },
  'flaky disk': { ...CALM, disk: 0.3, slow: 100 },
  'flaky database': { ...CALM, database: 0.4, slow: 200 },
  'flaky broker': { ...CALM, broker: 0.4, lose: 0.1 },
  storm: {
    lose: 0.2,
    double: 0.2,
    damage: 0.1,
    delay: 2000,
    kernel: 0.2,
    host: 0.2,
    disk: 0.2,
    database: 0.2,
    broker: 0.2,
    slow: 500,
  },
} as const satisfies Record<string, Faults>;
export type Weather = keyof typeof WEATHER;

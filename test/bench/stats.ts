/** What is said about a list of measured times: middle, tail, and how two lists measured side by side compare. */

export interface Summary {
  readonly count: number;
  readonly min: number;
  readonly median: number;
  readonly p99: number;
  readonly max: number;
}

/** The `q` quantile (0 to 1), interpolated between neighbours (type 7 of Hyndman and Fan, 1996). NaN of an empty list. */
export function quantile(values: readonly number[], q: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  const at = (sorted.length - 1) * q;
  const below = sorted[Math.floor(at)] ?? Number.NaN;
  const above = sorted[Math.ceil(at)] ?? Number.NaN;
  return below + (above - below) * (at - Math.floor(at));
}

export const median = (values: readonly number[]): number => quantile(values, 0.5);

export function summarize(values: readonly number[]): Summary {
  return {
    count: values.length,
    min: quantile(values, 0),
    median: median(values),
    p99: quantile(values, 0.99),
    max: quantile(values, 1),
  };
}

/** Median over the rounds of one's median divided by the other's in that same round, and how sure that is. */
export interface PairedRatio {
  readonly ratio: number;
  /** The median of as many rounds as one likes is within these with a confidence of about 95 %. */
  readonly from: number;
  readonly to: number;
}

/**
 * What disturbs the machine for a while disturbs both sides of a round, and falls out. The interval is that of the sign
 * test (Conover, Practical Nonparametric Statistics, 3.2), which asks nothing of how the rounds are spread.
 */
export function pairedRatioWithin(
  over: readonly (readonly number[])[],
  under: readonly (readonly number[])[],
): PairedRatio {
  const ratios = over.map((round, index) => median(round) / median(under[index] ?? [])).sort((a, b) => a - b);
  const outside = Math.max(0, Math.floor(ratios.length / 2 - 0.98 * Math.sqrt(ratios.length)));
  const [from = Number.NaN, to = Number.NaN] = [ratios[outside], ratios.at(-1 - outside)];
  return { ratio: median(ratios), from, to };
}

/** Its ratio alone. */
export function pairedRatio(
  over: readonly (readonly number[])[],
  under: readonly (readonly number[])[],
): number {
  return pairedRatioWithin(over, under).ratio;
}

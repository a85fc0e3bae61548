/** What passes between the bench and its processes inside hosts. */
export interface Question {
  readonly id: number;
  readonly operation: string;
  readonly argument: unknown;
}
export type Answer = { readonly id: number } & ({ readonly result: unknown } | { readonly error: string });

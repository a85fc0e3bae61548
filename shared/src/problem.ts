/** Problem documents (RFC 9457): how every error of the API reads. */
import { z } from 'zod';

export const Problem = z.object({
  /** Where the code is explained. */
  type: z.string(),
  title: z.string(),
  status: z.number().int(),
  /** Stable; switch on this. */
  code: z.string(),
  detail: z.string().optional(),
  /** Seconds; also in the Retry-After header. */
  retryAfter: z.number().optional(),
  /** For `bad_request`: what is wrong where. */
  errors: z.array(z.object({ path: z.string(), message: z.string() })).optional(),
});
export type Problem = z.infer<typeof Problem>;
export const PROBLEM_TYPE = 'application/problem+json';

/** Share 2 of 2: desired-state sync under everything that can go wrong. See world.ts for what runs. */
import { prove } from './prove.ts';

prove(1, 2);

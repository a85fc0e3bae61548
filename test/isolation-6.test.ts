import { prove } from './isolation/prove.ts';

prove(6);

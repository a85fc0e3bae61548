/**
 * Imported before everything else, for its effect: V8 grows the nursery to tens of megabytes while a program loads or
 * takes a large message, and gives them back minutes later. Its first size is enough here, and memory stays near what
 * is held: measured with 10,000 peers 118 MB without and 77 MB with it, and the same speed.
 */
import { setFlagsFromString } from 'node:v8';

setFlagsFromString('--semi-space-growth-factor=1');

/** The programs under test, as they ship. */
import { fileURLToPath } from 'node:url';

const built = (path: string) => fileURLToPath(new URL(`../../${path}`, import.meta.url));

export const AGENT = built('agent/dist/main.mjs');
export const HELPER = built('agent/dist/helper.mjs');
export const CONTROLLER = built('controller/dist/main.mjs');
export const WRAITH = built('controller/client/dist/wraith.mjs');

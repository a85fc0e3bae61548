/** The agent's version, as it reports it; a test holds it against package.json. */
export const VERSION = '0.1.0';

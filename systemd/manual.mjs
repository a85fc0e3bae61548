/** Manual pages (man(7)) from what the programs say of themselves with --help, so that the two cannot differ. */

/** What troff would take for a command or an escape. */
const plain = (text) =>
  text
    .replaceAll('\\', '\\e')
    .replaceAll('-', '\\-')
    .replaceAll(/^(['.])/gm, '\\&$1');

/** @param name of the page, in section 8 */
export function manualPage(name, help) {
  const [summary] = help.split('\n\n').filter((part) => !part.startsWith('Usage:'));
  const line = (summary ?? '').trim().split('\n')[0]?.replace(/[.:]$/, '') ?? '';
  return `.TH ${name.toUpperCase()} 8 "" Katafract
.SH NAME
${plain(name)} \\- ${plain(line.charAt(0).toLowerCase() + line.slice(1))}
.SH DESCRIPTION
.nf
${plain(help.trimEnd())}
.fi
.SH SEE ALSO
.BR wg (8),
.BR iptables (8)
`;
}

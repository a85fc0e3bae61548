/**
 * A wg-quick file as a QR code: the WireGuard apps for Android and iOS import the file's text as it stands. The code
 * holds the private key: show it, don't store it.
 */
import QRCode from 'qrcode';

/** Low redundancy keeps the modules of a 300-byte file large; a screen is neither dirty nor torn. */
const LEVEL = 'L';
/** Modules of quiet zone; ISO/IEC 18004 asks for 4. */
const MARGIN = 4;

/** @returns a whole SVG document */
export function qrSvg(config: string): Promise<string> {
  return QRCode.toString(config, { type: 'svg', errorCorrectionLevel: LEVEL, margin: MARGIN });
}

/**
 * Text for a terminal, two modules a character. Colours are set explicitly (dark on light): many readers refuse the
 * inverted code that a dark terminal would show otherwise.
 */
export function qrText(config: string): string {
  const { modules } = QRCode.create(config, { errorCorrectionLevel: LEVEL });
  const dark = (row: number, column: number) =>
    Math.min(row, column) >= 0 &&
    Math.max(row, column) < modules.size &&
    modules.data[row * modules.size + column] === 1;
  let text = '';
  for (let row = -MARGIN; row < modules.size + MARGIN; row += 2) {
    let line = '';
    for (let column = -MARGIN; column < modules.size + MARGIN; column++) {
      const [upper, lower] = [dark(row, column), dark(row + 1, column)];
      line += upper ? (lower ? '█' : '▀') : lower ? '▄' : ' ';
    }
    text += `\u001b[30;107m${line}\u001b[0m\n`;
  }
  return text;
}

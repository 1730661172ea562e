/** Text that comes from elsewhere, such that a terminal does not obey it. */

/**
 * Text of foreign origin with everything that a terminal obeys or hides written as `\u{..}`: control characters, bidirectional
 * and other invisible formatting, unusual spaces, lone surrogates. A backslash that could be taken for such an escape is itself
 * escaped, so the name can be read back.
 */
export function safeText(text: string): string {
  return text.replace(
    /\\(?=u\{)|[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]|(?! )\p{Zs}/gu,
    (character) => `\\u{${character.codePointAt(0)?.toString(16).padStart(2, "0")}}`,
  );
}

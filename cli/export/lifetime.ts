import type { Row } from "./register.ts";

/** Until when the URLs of an export live, and whether `IMAGE()` would open them. */
export type Lifetime = {
  readonly earliest: Date | undefined;
  readonly latest: Date | undefined;
  readonly isHttps: boolean;
};

/** Begins with no URL seen. */
export function createLifetime(): {
  readonly see: (rows: readonly Row[]) => void;
  readonly current: () => Lifetime;
} {
  let [earliest, latest] = [Infinity, -Infinity];
  let isHttps = true;
  return {
    see(rows) {
      for (const { expiresAt, signedUrl } of rows) {
        if (!signedUrl.startsWith("https://")) isHttps = false;
        if (expiresAt === undefined) continue;
        earliest = Math.min(earliest, expiresAt.getTime());
        latest = Math.max(latest, expiresAt.getTime());
      }
    },
    current: () => ({
      earliest: Number.isFinite(earliest) ? new Date(earliest) : undefined,
      latest: Number.isFinite(latest) ? new Date(latest) : undefined,
      isHttps,
    }),
  };
}

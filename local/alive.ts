/** Whether a process is there and does something. */
export function isAlive(pid: number): boolean {
  if (!(pid > 0)) return false;
  try {
    Deno.kill(pid, "SIGCONT"); // harmless to a process that runs, an error for one that does not
    return !isZombie(pid);
  } catch (error) {
    return error instanceof Deno.errors.PermissionDenied;
  }
}

// One that was killed and that nobody has asked after yet takes signals, and does nothing any more.
function isZombie(pid: number): boolean {
  try {
    const stat = Deno.readTextFileSync(`/proc/${pid}/stat`);
    // Behind the name in parentheses: the state.
    return stat.slice(stat.lastIndexOf(")") + 2).startsWith("Z");
  } catch {
    return false; // where there is no /proc
  }
}

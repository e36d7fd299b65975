// Bytes asked for -> where they lie; a sentence -> an error of the caller's. All else builds on
// this.

// @ts-ignore: decorator
@external("env", "fail")
declare function raise(message: string): void;

/** Leave with an error whose text is `message`; the host throws it. */
export function fail(message: string): void {
  raise(message);
  unreachable();
}

/** Bytes after the last one in use that may be read, so that loads of 8 or 16 need no tail. */
const SLACK: u64 = 64;
const MOST_PAGES: u64 = 65535;

let top: usize = (__heap_base + 15) & ~15;

/**
 * Bytes from the top of the stack of memory, aligned to 16; what was there before is still there.
 */
export function alloc(bytes: usize): usize {
  const at = top;
  const end = (<u64>at + <u64>bytes + 15) & ~15;
  const pages = (end + SLACK + 0xffff) >> 16;
  if (pages > <u64>memory.size()) {
    if (pages > MOST_PAGES || memory.grow(<i32>(pages - <u64>memory.size())) < 0) {
      fail("the model does not fit into the memory that a page may have");
    }
  }
  top = <usize>end;
  return at;
}

export function zeros(bytes: usize): usize {
  const at = alloc(bytes);
  memory.fill(at, 0, bytes);
  return at;
}

export function mark(): usize {
  return top;
}

/** Give back all that was taken since `mark` returned `to`. */
export function release(to: usize): void {
  top = to;
}

/* shim.h: libuv as a completion queue.
 *
 * What it is for stands in docs/architecture.md, what each function does in
 * uv.cdef, which cffi reads too. */
#ifndef VELOCILOOP_SHIM_H
#define VELOCILOOP_SHIM_H

#include <stddef.h>
#include <stdint.h>

#include "uv.cdef"

#endif

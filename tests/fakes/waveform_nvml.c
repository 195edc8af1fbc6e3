/* A stand-in for libnvidia-ml.so.1 that shows what a page of memory holds, for tests only.
 *
 * FAKE_NVML_CLOCK  file of int64: the time in microseconds; how many GPUs; then for each GPU its
 *                  energy in millijoules and its power in milliwatts, -1 where it does not tell.
 *
 * Waveforms and instruments are waveform.py's; faults are scripted in fake_nvml.c, not here.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { OK, UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED, MAX_GPUS = 48 };
enum { FIELD_POWER_INSTANT = 186, TYPE_UNSIGNED = 1, PAGE = 4096 };

typedef struct {
  unsigned field, scope;
  long long timestamp, latency_us;
  unsigned value_type;
  int status;
  union { unsigned ui; unsigned long long ull; } value;
} nvmlFieldValue_t;

/* As in NVIDIA's own nvml.h 13.5. */
_Static_assert(sizeof(nvmlFieldValue_t) == 40, "nvmlFieldValue_t");

typedef struct {
  int64_t energy_mj, power_mw;
} Gpu;

static volatile struct {
  int64_t now_us, gpus;
  Gpu gpu[MAX_GPUS];
} *page;

int nvmlInitWithFlags(unsigned flags) {
  (void)flags;
  if (page) return OK;
  int fd = open(getenv("FAKE_NVML_CLOCK"), O_RDONLY | O_CLOEXEC);
  void *found = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0);
  if (found == MAP_FAILED) abort();
  page = found;
  return OK;
}

int nvmlShutdown(void) { return OK; }

const char *nvmlErrorString(int status) { return status ? "an error" : "success"; }

int nvmlDeviceGetCount_v2(unsigned *count) {
  *count = (unsigned)page->gpus;
  return OK;
}

/* A handle is the GPU's part of the page. */
int nvmlDeviceGetHandleByIndex_v2(unsigned index, volatile Gpu **gpu) {
  if (index >= page->gpus) return INVALID_ARGUMENT;
  *gpu = &page->gpu[index];
  return OK;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, volatile Gpu **gpu) {
  unsigned index;
  if (sscanf(uuid, "GPU-%u", &index) != 1) return INVALID_ARGUMENT;
  return nvmlDeviceGetHandleByIndex_v2(index, gpu);
}

int nvmlDeviceGetUUID(volatile Gpu *gpu, char *out, unsigned size) {
  snprintf(out, size, "GPU-%d", (int)(gpu - page->gpu));
  return OK;
}

int nvmlDeviceGetName(volatile Gpu *gpu, char *out, unsigned size) {
  (void)gpu;
  snprintf(out, size, "Waveform");
  return OK;
}

int nvmlDeviceGetTotalEnergyConsumption(volatile Gpu *gpu, unsigned long long *mj) {
  if (gpu->energy_mj < 0) return NOT_SUPPORTED;
  *mj = (unsigned long long)gpu->energy_mj;
  return OK;
}

int nvmlDeviceGetPowerUsage(volatile Gpu *gpu, unsigned *mw) {
  if (gpu->power_mw < 0) return NOT_SUPPORTED;
  *mw = (unsigned)gpu->power_mw;
  return OK;
}

int nvmlDeviceGetFieldValues(volatile Gpu *gpu, int count, nvmlFieldValue_t *values) {
  for (int i = 0; i < count; i++) {
    int known = values[i].field == FIELD_POWER_INSTANT && !values[i].scope && gpu->power_mw >= 0;
    values[i].status = known ? OK : NOT_SUPPORTED;
    values[i].value_type = TYPE_UNSIGNED;
    values[i].value.ui = known ? (unsigned)gpu->power_mw : 0;
  }
  return OK;
}

/* The fake NVML's processes and MIG instances: who uses a GPU. See fake_nvml.h. */
#define _GNU_SOURCE
#include "fake_nvml.h"

#include <stdlib.h>

typedef struct {
  unsigned pid;
  unsigned long long stamp;
  unsigned sm, mem, enc, dec;
} nvmlProcessUtilizationSample_t;

typedef struct {
  unsigned pid;
  unsigned long long bytes;
  unsigned gpu_instance, compute_instance;
} nvmlProcessInfo_t;

typedef struct {
  unsigned sms, copy, decoders, encoders, jpeg, ofa, gpu_slices, compute_slices;
  unsigned long long memory_mb;
} nvmlDeviceAttributes_t;

typedef struct {
  unsigned version, id, p2p, slices, instances, sms, copy, decoders, encoders, jpeg, ofa;
  unsigned long long memory_mb;
  char name[96];
} nvmlGpuInstanceProfileInfo_v2_t;

typedef struct {
  unsigned id;
  nvmlReturn_t status;
  double value;
  const char *short_name, *long_name, *unit;
} nvmlGpmMetric_t;

/* What the instance's SMs did until then, in percent times microseconds. */
typedef struct {
  us_t at;
  int64_t busy;
} *nvmlGpmSample_t;

typedef struct {
  unsigned version, count;
  nvmlGpmSample_t first, second;
  nvmlGpmMetric_t metrics[];
} nvmlGpmMetricsGet_t;

/* As in NVIDIA's own nvml.h 13.5. */
_Static_assert(sizeof(nvmlProcessUtilizationSample_t) == 32, "nvmlProcessUtilizationSample_t");
_Static_assert(sizeof(nvmlProcessInfo_t) == 24, "nvmlProcessInfo_t");
_Static_assert(sizeof(nvmlDeviceAttributes_t) == 40, "nvmlDeviceAttributes_t");
_Static_assert(sizeof(nvmlGpuInstanceProfileInfo_v2_t) == 152, "nvmlGpuInstanceProfileInfo_v2_t");
_Static_assert(sizeof(nvmlGpmMetric_t) == 40, "nvmlGpmMetric_t");

enum { SM_UTIL = 2, PROFILE_7_SLICE = 4, PROFILES = 18, BOARD_SMS = 132, BOARD_SLICES = 7 };
#define SAMPLE_PERIOD_US 200000
#define SAMPLES_KEPT 50
#define GPM_SHORTEST_US 100000

static nvmlReturn_t running(const char *call, nvmlDevice_t device, int graphics, unsigned *count,
                            nvmlProcessInfo_t *out) {
  nvmlReturn_t status = check(call, device, count);
  if (status != OK) return status;
  const Gpu *gpu = &gpus[device->gpu];
  us_t t = now_us();
  unsigned n = 0;
  for (int i = 0; i < gpu->processes; i++) {
    const Process *process = &gpu->process[i];
    if (process->graphics != graphics || t < process->on || t >= process->off) continue;
    if (out && n < *count) {
      out[n] = (nvmlProcessInfo_t){process->pid, process->bytes, (unsigned)process->instance,
                                   UINT32_MAX};
    }
    n++;
  }
  status = n > *count ? INSUFFICIENT_SIZE : OK;
  *count = n;
  return status;
}

#ifndef NO_COMPUTE_LIST
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned *count,
                                                     nvmlProcessInfo_t *out) {
  return running(__func__, device, 0, count, out);
}
#endif

#ifndef NO_GRAPHICS_LIST
nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned *count,
                                                      nvmlProcessInfo_t *out) {
  return running(__func__, device, 1, count, out);
}
#endif

/* One sample per busy process every 200 ms; the last 10 s are kept. As drivers may, it pads what it
 * has with a stale sample and an impossible one. */
nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device,
                                             nvmlProcessUtilizationSample_t *out, unsigned *count,
                                             unsigned long long last) {
  nvmlReturn_t status = check(__func__, device, count);
  if (status != OK) return status;
  const Gpu *gpu = &gpus[device->gpu];
  if (gpu->mig) return NOT_SUPPORTED;
  unsigned room = SAMPLES_KEPT * MAX_PROCESSES + 2, n = 0;
  if (!out || *count < room) {
    *count = room;
    return INSUFFICIENT_SIZE;
  }
  us_t newest = now_us() / SAMPLE_PERIOD_US;
  us_t oldest = newest < SAMPLES_KEPT ? 1 : newest - SAMPLES_KEPT + 1;
  for (us_t k = oldest; k <= newest; k++) {
    unsigned long long stamp = STAMP_EPOCH_US + (unsigned long long)(k * SAMPLE_PERIOD_US);
    for (int i = 0; i < gpu->processes && stamp > last; i++) {
      const Process *process = &gpu->process[i];
      us_t t = k * SAMPLE_PERIOD_US;
      if (!process->sm || t < process->on || t >= process->off) continue;
      out[n++] = (nvmlProcessUtilizationSample_t){
          .pid = process->pid, .stamp = stamp, .sm = process->sm};
    }
  }
  if (!n) return NOT_FOUND;
  unsigned pid = out[0].pid;
  out[n++] = (nvmlProcessUtilizationSample_t){.pid = pid, .stamp = last, .sm = 99};
  out[n++] = (nvmlProcessUtilizationSample_t){.pid = pid, .stamp = last + 1, .sm = UINT32_MAX};
  *count = n;
  return OK;
}

/* ------------------------------------------------------------------------------------------ MIG */

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned *current, unsigned *pending) {
  nvmlReturn_t status = check(__func__, device, current);
  if (status != OK) return status;
  *current = *pending = (unsigned)gpus[device->gpu].mig;
  return OK;
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned *count) {
  nvmlReturn_t status = check(__func__, device, count);
  if (status == OK) *count = gpus[device->gpu].mig ? BOARD_SLICES : 0;
  return status;
}

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned index,
                                                 nvmlDevice_t *out) {
  nvmlReturn_t status = check(__func__, device, out);
  if (status != OK) return status;
  if ((int)index >= gpus[device->gpu].instances) return NOT_FOUND;
  *out = instance_handle(device, (int)index);
  return OK;
}

nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t device, unsigned *id) {
  nvmlReturn_t status = check(__func__, device, id);
  if (status != OK) return status;
  if (device->instance == WHOLE_BOARD) return NOT_SUPPORTED;
  *id = (unsigned)gpus[device->gpu].instance[device->instance].id;
  return OK;
}

nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t device, nvmlDeviceAttributes_t *out) {
  nvmlReturn_t status = check(__func__, device, out);
  if (status != OK) return status;
  if (device->instance == WHOLE_BOARD) return NOT_SUPPORTED;
  const Instance *instance = &gpus[device->gpu].instance[device->instance];
  *out = (nvmlDeviceAttributes_t){.sms = (unsigned)instance->sms,
                                  .gpu_slices = (unsigned)instance->slices,
                                  .compute_slices = (unsigned)instance->slices};
  return OK;
}

nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfoV(nvmlDevice_t device, unsigned profile,
                                                  nvmlGpuInstanceProfileInfo_v2_t *out) {
  nvmlReturn_t status = check(__func__, device, out);
  if (status != OK) return status;
  if (profile >= PROFILES) return INVALID_ARGUMENT;
  if (!gpus[device->gpu].mig || profile != PROFILE_7_SLICE) return NOT_SUPPORTED;
  out->slices = BOARD_SLICES;
  out->sms = BOARD_SMS;
  return OK;
}

nvmlReturn_t nvmlGpmSampleAlloc(nvmlGpmSample_t *sample) {
  *sample = calloc(1, sizeof **sample);
  return OK;
}

nvmlReturn_t nvmlGpmSampleFree(nvmlGpmSample_t sample) {
  free(sample);
  return OK;
}

nvmlReturn_t nvmlGpmMigSampleGet(nvmlDevice_t device, unsigned id, nvmlGpmSample_t sample) {
  nvmlReturn_t status = check(__func__, device, sample);
  if (status != OK) return status;
  const Gpu *gpu = &gpus[device->gpu];
  if (!gpu->gpm) return NOT_SUPPORTED;
  for (int i = 0; i < gpu->instances; i++) {
    if ((unsigned)gpu->instance[i].id != id) continue;
    sample->at = now_us();
    sample->busy = integral(&gpu->instance[i].activity, 0, sample->at);
    return OK;
  }
  return INVALID_ARGUMENT;
}

nvmlReturn_t nvmlGpmMetricsGet(nvmlGpmMetricsGet_t *get) {
  if (ready(__func__) != OK) return UNINITIALIZED;
  us_t span = get->second->at - get->first->at;
  for (unsigned i = 0; i < get->count; i++) {
    nvmlGpmMetric_t *metric = &get->metrics[i];
    metric->status = span < GPM_SHORTEST_US ? INVALID_ARGUMENT : OK;
    if (metric->id != SM_UTIL) metric->status = NOT_SUPPORTED;
    if (metric->status == OK)
      metric->value = (double)(get->second->busy - get->first->busy) / (double)span;
  }
  return OK;
}

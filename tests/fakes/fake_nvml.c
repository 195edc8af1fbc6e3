/* The fake NVML's GPUs: found, counted and metered. See fake_nvml.h. */
#define _GNU_SOURCE
#include "fake_nvml.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

typedef struct {
  unsigned field, scope;
  long long timestamp, latency_us;
  unsigned value_type;
  nvmlReturn_t status;
  union { unsigned ui; unsigned long long ull; double d; } value;
} nvmlFieldValue_t;

/* As in NVIDIA's own nvml.h 13.5. */
_Static_assert(sizeof(nvmlFieldValue_t) == 40, "nvmlFieldValue_t");

enum { POWER_AVERAGE = 185, POWER_INSTANT = 186, SCOPE_GPU = 0, SCOPE_MODULE = 1 };
enum { TYPE_DOUBLE = 0, TYPE_UNSIGNED = 1 };

static Handle handles[MAX_GENERATIONS][MAX_GPUS];
static Handle instances[MAX_GENERATIONS][MAX_GPUS][MAX_INSTANCES];
static int reloads_done, generation, found, users, loaded;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void enumerate(void) {
  us_t t = now_us();
  found = 0;
  if (++generation == MAX_GENERATIONS) die("too many initializations");
  for (int i = 0; i < MAX_GPUS; i++) {
    if (gpus[i].used && t < gpus[i].absent && inside(&gpus[i].present, t))
      handles[generation][found++] = (Handle){i, generation, WHOLE_BOARD};
  }
}

/* Whether NVML is initialized; a scripted reload ends that. */
nvmlReturn_t ready(const char *call) {
  dawdle(call);
  pthread_mutex_lock(&lock);
  if (users && reloads_done < reloads && now_us() >= reload_at[reloads_done]) {
    reloads_done++;
    users = 0;
  }
  nvmlReturn_t status = users ? OK : UNINITIALIZED;
  pthread_mutex_unlock(&lock);
  return status;
}

nvmlReturn_t check(const char *call, nvmlDevice_t device, const void *out) {
  nvmlReturn_t status = ready(call);
  if (status != OK) return status;
  if (!device || !out || device->generation != generation) return INVALID_ARGUMENT;
  const Gpu *gpu = &gpus[device->gpu];
  us_t t = now_us();
  return inside(&gpu->lost, t) || !inside(&gpu->present, t) ? GPU_IS_LOST : OK;
}

nvmlDevice_t instance_handle(nvmlDevice_t board, int instance) {
  nvmlDevice_t handle = &instances[generation][board->gpu][instance];
  *handle = (Handle){board->gpu, generation, instance};
  return handle;
}

static us_t refreshed(us_t t, us_t period) { return period > 0 ? t - t % period : t; }

/* What a gauge of this power says at t: its value, or the mean over the last sensed window. */
static unsigned gauge_mw(const Gpu *gpu, const Steps *power) {
  us_t t = now_us() - gpu->lag;
  if (t < 0) t = 0;
  t = refreshed(t, gpu->duty_period ? gpu->duty_period : default_refresh_us());
  if (!gpu->duty_window || t < gpu->duty_window) return (unsigned)value_at(power, t);
  return (unsigned)(integral(power, t - gpu->duty_window, t) / gpu->duty_window);
}

/* The mean of the last second, as on Ampere or newer. */
static unsigned mean_mw(const Gpu *gpu, const Steps *power) {
  us_t t = refreshed(now_us() - gpu->lag, default_refresh_us());
  us_t since = t > US_PER_S ? t - US_PER_S : 0;
  return (unsigned)(t > since ? integral(power, since, t) / (t - since) : value_at(power, t));
}

nvmlReturn_t nvmlInitWithFlags(unsigned flags) {
  (void)flags;
  pthread_mutex_lock(&lock);
  if (!loaded) load();
  loaded = 1;
  if (!users++) enumerate();
  pthread_mutex_unlock(&lock);
  return OK;
}

nvmlReturn_t nvmlShutdown(void) {
  if (ready(__func__) != OK) return UNINITIALIZED;
  pthread_mutex_lock(&lock);
  users--;
  pthread_mutex_unlock(&lock);
  return OK;
}

const char *nvmlErrorString(nvmlReturn_t status) { return status ? "an error" : "success"; }

nvmlReturn_t nvmlSystemGetDriverVersion(char *out, unsigned size) {
  if (ready(__func__) != OK) return UNINITIALIZED;
  snprintf(out, size, "999.00-FAKE");
  return OK;
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count) {
  if (ready(__func__) != OK) return UNINITIALIZED;
  *count = (unsigned)found;
  return OK;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device) {
  if (ready(__func__) != OK) return UNINITIALIZED;
  if ((int)index >= found) return INVALID_ARGUMENT;
  *device = &handles[generation][index];
  return OK;
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
  if (ready(__func__) != OK) return UNINITIALIZED;
  for (int i = 0; i < found; i++) {
    *device = &handles[generation][i];
    if (!strcmp(gpus[(*device)->gpu].uuid, uuid)) return OK;
  }
  return NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *out, unsigned size) {
  nvmlReturn_t status = check(__func__, device, out);
  if (status == OK) snprintf(out, size, "%s", gpus[device->gpu].uuid);
  return status;
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *out, unsigned size) {
  nvmlReturn_t status = check(__func__, device, out);
  if (status == OK) snprintf(out, size, "%s", gpus[device->gpu].name);
  return status;
}

nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long *mj) {
  nvmlReturn_t status = check(__func__, device, mj);
  if (status != OK) return status;
  const Gpu *gpu = &gpus[device->gpu];
  if (gpu->noenergy) return NOT_SUPPORTED;
  us_t now = now_us(), t = now - gpu->lag, since = 0;
  if (inside(&gpu->stuck, t)) t = gpu->stuck.on;
  t = refreshed(t < 0 ? 0 : t, gpu->refresh);
  for (int i = 0; i < gpu->resets && gpu->reset_at[i] <= t; i++) since = gpu->reset_at[i];
  const Steps *power = gpu->module.count ? &gpu->module : &gpu->power;
  *mj = (unsigned long long)(integral(power, since, t) / 1000000);
  if (inside(&gpu->bump, now)) *mj += (unsigned long long)gpu->bump_mj;
  if (inside(&gpu->garbage, now)) *mj = UINT64_MAX;
  return OK;
}

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned *mw) {
  nvmlReturn_t status = check(__func__, device, mw);
  if (status != OK) return status;
  const Gpu *gpu = &gpus[device->gpu];
  if (gpu->nopower) return NOT_SUPPORTED;
  *mw = inside(&gpu->garbage, now_us()) ? UINT32_MAX : mean_mw(gpu, &gpu->power);
  return OK;
}

static void fill(const Gpu *gpu, nvmlFieldValue_t *value) {
  int module = value->scope == SCOPE_MODULE && gpu->module.count;
  int instant = value->field == POWER_INSTANT && !gpu->noinstant;
  int known = (instant || value->field == POWER_AVERAGE) && (module || value->scope == SCOPE_GPU);
  const Steps *power = module ? &gpu->module : &gpu->power;
  value->status = known && !gpu->nofields && !gpu->nopower ? OK : NOT_SUPPORTED;
  value->value_type = TYPE_UNSIGNED;
  value->timestamp = (long long)STAMP_EPOCH_US + now_us();
  value->value.ull = 0;
  if (value->status != OK) return;
  value->value.ui = instant ? gauge_mw(gpu, power) : mean_mw(gpu, power);
  if (inside(&gpu->garbage, now_us())) {
    value->value_type = TYPE_DOUBLE;
    value->value.d = NAN;
  }
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *values) {
  nvmlReturn_t status = check(__func__, device, values);
  if (status != OK) return status;
  for (int i = 0; i < count; i++) fill(&gpus[device->gpu], &values[i]);
  return OK;
}

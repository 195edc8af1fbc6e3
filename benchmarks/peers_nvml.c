/* What CodeCarbon asks NVML at its start, besides what the tests' scripted NVML answers. It is
 * linked into the same library, for all tools alike. */

int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *total_free_used) {
  (void)device;
  total_free_used[0] = 80000000000ull;
  total_free_used[1] = total_free_used[2] = 40000000000ull;
  return 0;
}

int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *mw) {
  (void)device;
  *mw = 700000;
  return 0;
}

int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *celsius) {
  (void)device, (void)sensor;
  *celsius = 55;
  return 0;
}

int nvmlDeviceGetComputeMode(void *device, unsigned *mode) {
  (void)device;
  *mode = 0;
  return 0;
}

int nvmlDeviceGetUtilizationRates(void *device, unsigned *percents) {
  (void)device;
  percents[0] = percents[1] = 50;
  return 0;
}

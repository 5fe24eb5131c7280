// The OpenMM force that evaluates a model without Python.
//
// One file without SWIG: a Force is made from XML by the proxy registered below, and everything
// else goes through the extern "C" functions at the end, which library.py calls by ctypes. It is
// compiled against the headers in the openmm and torch packages, on the spot, so it fits them.

#include <openmm/Context.h>
#include <openmm/Force.h>
#include <openmm/OpenMMException.h>
#include <openmm/Platform.h>
#include <openmm/System.h>
#include <openmm/internal/ContextImpl.h>
#include <openmm/internal/CustomCPPForceImpl.h>
#include <openmm/serialization/SerializationNode.h>
#include <openmm/serialization/SerializationProxy.h>

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <torch/csrc/inductor/aoti_runner/model_container_runner.h>
#include <torch/csrc/jit/serialization/import.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <unordered_map>
#include <vector>

using OpenMM::Context;
using OpenMM::ContextImpl;
using OpenMM::Force;
using OpenMM::OpenMMException;
using OpenMM::SerializationNode;
using OpenMM::Vec3;

namespace {

// One step moves a bead of 12 Da by 3 nm under such a force: no molecule survives it.
constexpr float FORCE_LIMIT = 1e7f;

// Fewer copies than this are not worth a thread of their own.
constexpr int64_t LEAST_COPIES = 16;

// TorchScript optimises its graph in its first calls; what they return is not used again.
constexpr int64_t SCRIPT_WARM_UP = 3;

// -- what evaluates the network -----------------------------------------------------------------

// Energies (copies) and forces (copies * beads, 3) of positions (copies * beads, 3), float32.
struct Program {
    virtual ~Program() = default;
    virtual void run(const at::Tensor& positions, const at::Tensor* box, at::Tensor& energies,
                     at::Tensor& forces) = 0;
    // Most copies of one call; 0: any number.
    int64_t copies = 0;
    int threads = 1;
    bool compiled = true;
    std::string device = "cpu";
};

using Runner = torch::inductor::AOTIModelContainerRunner;

torch::jit::Module load_script(const std::string& archive, const std::string& device) {
    std::istringstream stream(archive);
    torch::jit::Module module = torch::jit::load(stream, at::Device(device));
    module.eval();
    for (at::Tensor parameter : module.parameters())
        parameter.set_requires_grad(false);
    return module;
}

struct Package : Program {
    // The runner uses these weights where they are, so they are here as long as it is.
    std::unordered_map<std::string, at::Tensor> weights;
    std::unique_ptr<Runner> runner;
    Package(const std::string& path, const std::string& archive, const std::string& where,
            int64_t count, int threads_) {
        copies = count;
        threads = threads_;
        device = where;
        std::string kind = device.substr(0, device.find(':'));
        auto& registry = torch::inductor::getAOTIModelRunnerRegistry();
        auto make = registry.find(kind);
        if (make == registry.end())
            throw OpenMMException("this torch cannot run packages on " + kind);
        runner = make->second(path, threads, device, "", false);
        std::unordered_map<std::string, at::Tensor> stored;
        torch::jit::Module module = load_script(archive, device);
        for (const auto& one : module.named_parameters())
            stored[one.name] = one.value;
        for (const auto& one : module.named_buffers())
            stored[one.name] = one.value;
        for (const auto& [name, original] : runner->getConstantNamesToOriginalFQNs()) {
            auto found = stored.find(original);
            if (found != stored.end())  // others were made in tracing and are in the package
                weights[name] = found->second.contiguous().clone();
        }
        runner->update_constant_buffer(weights, false, false, true);
    }
    void run(const at::Tensor& positions, const at::Tensor* box, at::Tensor& energies,
             at::Tensor& forces) override {
        std::vector<at::Tensor> inputs{positions};
        if (box)
            inputs.push_back(*box);
        c10::DeviceGuard here{at::Device(device)};
        if (device != "cpu")
            for (at::Tensor& input : inputs)
                input = input.to(device);
        std::vector<at::Tensor> outputs = runner->boxed_run(std::move(inputs));
        energies = outputs.at(0);
        forces = outputs.at(1);
    }
};

struct Script : Program {
    torch::jit::Module module;
    int64_t copies_set = -1;
    Script(const std::string& archive, const std::string& where) {
        compiled = false;
        device = where;
        module = load_script(archive, device);
    }
    void run(const at::Tensor& positions, const at::Tensor* box, at::Tensor& energies,
             at::Tensor& forces) override {
        int64_t count = positions.size(0) / module.attr("beads").toInt();
        if (count != copies_set) {
            module.setattr("copies", count);
            copies_set = count;
        }
        std::vector<c10::IValue> inputs{positions.to(device)};
        if (box)
            inputs.push_back(box->to(device));
        auto outputs = module.get_method("energies_and_forces")(inputs).toTuple();
        energies = outputs->elements()[0].toTensor();
        forces = outputs->elements()[1].toTensor();
    }
};

// -- the force ----------------------------------------------------------------------------------

// Python's answer to: is there a package for this archive? See library.py.
using Resolver = int (*)(const char* archive, int64_t size, const char* question, char* answer,
                         int64_t room);
Resolver resolver = nullptr;

class CGMLForce : public Force {
public:
    std::string model;    // the model file's name, for messages
    std::string archive;  // the model file
    int copies = 1, beads = 1;
    bool periodic = false, guarded = false;
    std::vector<int> particles;  // empty: the System holds nothing else
    std::vector<double> scales;  // a copy's factor on energy and forces; empty: 1
    std::string parameter;       // Context parameter that multiplies all; empty: none
    double default_value = 1.0;

    bool usesPeriodicBoundaryConditions() const override { return periodic; }
    OpenMM::ForceImpl& impl(Context& context) { return getImplInContext(context); }

protected:
    OpenMM::ForceImpl* createImpl() const override;
};

class CGMLForceImpl : public OpenMM::CustomCPPForceImpl {
public:
    explicit CGMLForceImpl(const CGMLForce& owner)
        : CustomCPPForceImpl(owner), force_(owner), scales_(owner.scales) {}

    const CGMLForce& getOwner() const override { return force_; }

    std::map<std::string, double> getDefaultParameters() override {
        if (force_.parameter.empty())
            return {};
        return {{force_.parameter, force_.default_value}};
    }

    void initialize(ContextImpl& context) override {
        check(context.getSystem().getNumParticles());
        CustomCPPForceImpl::initialize(context);
        context_ = &context;
        at::NoGradGuard no_grad;
        try {
            program_ = find_program(context);
        } catch (const OpenMMException&) {
            throw;
        } catch (const std::exception& error) {
            throw failure(reason(error.what()));
        }
        int64_t rows = int64_t(force_.copies) * force_.beads;
        input_ = at::zeros({rows, 3}, at::kFloat);
        seen_.resize(3 * rows);
        energies_.resize(force_.copies);
        forces_.resize(3 * rows);
        well_.assign(force_.copies, 1);
        sick_.assign(force_.copies, 0);
        box_ = at::zeros({3, 3}, at::kFloat);
    }

    double computeForce(ContextImpl& context, const std::vector<Vec3>& positions,
                        std::vector<Vec3>& forces) override {
        evaluate(context, positions);
        double common =
            force_.parameter.empty() ? 1.0 : context.getParameter(force_.parameter);
        double energy = 0.0;
        const std::vector<int>& chosen = force_.particles;
        if (!chosen.empty())
            std::fill(forces.begin(), forces.end(), Vec3());
        for (int copy = 0; copy < force_.copies; copy++) {
            if (!well_[copy])
                sick_[copy]++;
            double scale = scales_.empty() ? common : common * scales_[copy];
            energy += scale * energies_[copy];
            const float* from = &forces_[3 * size_t(copy) * force_.beads];
            for (int bead = 0; bead < force_.beads; bead++, from += 3) {
                size_t row = size_t(copy) * force_.beads + bead;
                forces[chosen.empty() ? row : chosen[row]] =
                    Vec3(scale * from[0], scale * from[1], scale * from[2]);
            }
        }
        return energy;
    }

    // Each copy's energy at the Context's positions, and its sick evaluations in steps so far.
    void read(double* energies, int64_t* sick, int64_t count) {
        check_count(count);
        std::vector<Vec3> positions;
        context_->getPositions(positions);
        evaluate(*context_, positions);
        double common =
            force_.parameter.empty() ? 1.0 : context_->getParameter(force_.parameter);
        for (int copy = 0; copy < force_.copies; copy++) {
            energies[copy] = energies_[copy] * common * (scales_.empty() ? 1.0 : scales_[copy]);
            sick[copy] = sick_[copy];
        }
    }

    void set_scales(const double* scales, int64_t count) {
        check_count(count);
        scales_.assign(scales, scales + force_.copies);
        context_->systemChanged();  // forces that an integrator keeps are no longer valid
    }

    const Program& program() const { return *program_; }
    int64_t evaluations() const { return evaluations_; }

private:
    OpenMMException failure(const std::string& reason) const {
        return OpenMMException("model " + force_.model + ": " + reason);
    }

    void check_count(int64_t count) const {
        if (count != force_.copies)
            throw failure("it has " + std::to_string(force_.copies) + " copies here, not " +
                          std::to_string(count) + "; give one number a copy");
    }

    void check(int particles) const {
        size_t beads = size_t(force_.copies) * force_.beads;
        const std::vector<int>& chosen = force_.particles;
        if (chosen.empty() && size_t(particles) != beads)
            throw failure("the System has " + std::to_string(particles) +
                          " particles but the model has " + std::to_string(force_.copies) +
                          " copies of " + std::to_string(force_.beads) +
                          " beads; pass copies= or particles= to create_force()");
        for (int particle : chosen)
            if (particle < 0 || particle >= particles)
                throw failure("the model uses particle " + std::to_string(particle) +
                              " but the System has only " + std::to_string(particles) +
                              "; give create_force() the System's own particle indices");
        if (!chosen.empty() && chosen.size() != beads)
            throw failure("it has " + std::to_string(beads) + " beads in all but " +
                          std::to_string(chosen.size()) + " particles were given");
        if (!force_.scales.empty() && force_.scales.size() != size_t(force_.copies))
            throw failure("give one scale a copy");
    }

    std::unique_ptr<Program> find_program(ContextImpl& context) const {
        OpenMM::Platform& platform = context.getPlatform();
        std::ostringstream question;
        question << force_.model << "\n" << force_.copies << "\n" << force_.periodic << "\n"
                 << platform.getName() << "\n";
        for (const std::string& name : platform.getPropertyNames())
            if (name == "DeviceIndex")
                question << platform.getPropertyValue(context.getOwner(), name);
        std::string answer(1 << 16, '\0');
        if (!resolver)
            throw failure("import openmm_cgml before making the Context");
        int status = resolver(force_.archive.data(), force_.archive.size(),
                              question.str().c_str(), &answer[0], answer.size());
        std::istringstream lines(answer.c_str());
        std::string path, device, count, threads;
        std::getline(lines, path);
        if (status != 0)
            throw failure(path);
        std::getline(lines, device);
        std::getline(lines, count);
        std::getline(lines, threads);
        if (path.empty())
            return std::make_unique<Script>(force_.archive, device);
        return std::make_unique<Package>(path, force_.archive, device, std::stoll(count),
                                         std::stoi(threads));
    }

    void evaluate(ContextImpl& context, const std::vector<Vec3>& positions) {
        const std::vector<int>& chosen = force_.particles;
        float* to = input_.data_ptr<float>();
        size_t rows = size_t(force_.copies) * force_.beads;
        for (size_t row = 0; row < rows; row++, to += 3) {
            const Vec3& position = positions[chosen.empty() ? row : chosen[row]];
            to[0] = float(position[0]);
            to[1] = float(position[1]);
            to[2] = float(position[2]);
        }
        bool same = evaluations_ >= (program_->compiled ? 1 : SCRIPT_WARM_UP);
        if (force_.periodic) {
            Vec3 box[3];
            context.getPeriodicBoxVectors(box[0], box[1], box[2]);
            float* vectors = box_.data_ptr<float>();
            for (int k = 0; k < 9; k++) {
                float value = float(box[k / 3][k % 3]);
                same = same && vectors[k] == value;
                vectors[k] = value;
            }
        }
        const float* input = input_.data_ptr<float>();
        // What was read after a step is not computed again in the next one.
        if (same && std::memcmp(input, seen_.data(), sizeof(float) * seen_.size()) == 0)
            return;
        try {
            run();
        } catch (const std::exception& error) {
            evaluations_ = 0;  // half of the results may be new
            throw failure(reason(error.what()));
        }
        std::copy(input, input + seen_.size(), seen_.begin());
        evaluations_++;
    }

    // The line that counts: TorchScript ends with it, after its traceback; others begin with it.
    static std::string reason(std::string text) {
        text.erase(text.find_last_not_of(" \n") + 1);
        if (text.rfind("The following operation failed in the TorchScript", 0) == 0)
            return text.substr(text.rfind('\n') + 1);
        return text.substr(0, text.find('\n'));
    }

    void run() {
        const at::Tensor* box = force_.periodic ? &box_ : nullptr;
        int64_t parts = 1;
        if (program_->copies > 1) {  // in parts that stay in the processor's cache
            parts = (force_.copies + program_->copies - 1) / program_->copies;
            if (program_->device == "cpu") {  // and that threads share evenly
                int64_t least = std::max<int64_t>(1, force_.copies / LEAST_COPIES);
                int64_t threads = std::min<int64_t>(program_->threads, least);
                parts = (parts + threads - 1) / threads * threads;
            }
        }
        at::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
            at::NoGradGuard no_grad;
            for (int64_t part = first; part < last; part++)
                run_part(part * force_.copies / parts, (part + 1) * force_.copies / parts, box);
        });
    }

    void run_part(int64_t first, int64_t last, const at::Tensor* box) {
        int64_t beads = force_.beads;
        at::Tensor energies, forces;
        int64_t count = last - first;
        at::Tensor part = input_.narrow(0, first * beads, count * beads);
        // A compiled program reads the number of copies from the shape: it would find it as a
        // quotient by multiplying with 1.0 / beads, which is one too small for some numbers.
        program_->run(program_->compiled ? part.view({count, beads, 3}) : part, box, energies,
                      forces);
        if (energies.numel() != count || forces.numel() != 3 * count * beads)
            throw OpenMMException("its program returned " + std::to_string(energies.numel()) +
                                  " energies for " + std::to_string(count) + " copies");
        if (energies.scalar_type() == at::kDouble) {  // a user's module's; ours are single
            energies = energies.to(at::kCPU).contiguous();
            std::copy_n(energies.data_ptr<double>(), count, &energies_[first]);
        } else {
            energies = energies.to(at::kCPU, at::kFloat).contiguous();
            std::copy_n(energies.data_ptr<float>(), count, &energies_[first]);
        }
        forces = forces.to(at::kCPU, at::kFloat).contiguous();
        const float* from = forces.data_ptr<float>();
        for (int64_t copy = first; copy < last; copy++, from += 3 * beads) {
            float* to = &forces_[3 * copy * beads];
            int sick = !std::isfinite(energies_[copy]);
            for (int64_t k = 0; k < 3 * beads; k++) {
                to[k] = from[k];
                // NaN compares false, so one comparison finds it and too large forces alike.
                sick |= !(std::fabs(from[k]) < FORCE_LIMIT);
            }
            well_[copy] = !sick || !force_.guarded;
            if (!well_[copy]) {
                energies_[copy] = 0.0;
                std::fill(to, to + 3 * beads, 0.0f);
            }
        }
    }

    const CGMLForce& force_;
    std::vector<double> scales_;
    ContextImpl* context_ = nullptr;
    std::unique_ptr<Program> program_;
    at::Tensor input_, box_;
    std::vector<float> seen_, forces_;
    std::vector<double> energies_;
    std::vector<char> well_;
    std::vector<int64_t> sick_;
    int64_t evaluations_ = 0;
};

OpenMM::ForceImpl* CGMLForce::createImpl() const { return new CGMLForceImpl(*this); }

// -- XML ----------------------------------------------------------------------------------------

const char DIGITS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

std::string to_base64(const std::string& bytes) {
    std::string text;
    text.reserve(4 * (bytes.size() + 2) / 3);
    for (size_t k = 0; k < bytes.size(); k += 3) {
        uint32_t three = 0;
        for (size_t j = 0; j < 3; j++)
            three = three << 8 | (k + j < bytes.size() ? uint8_t(bytes[k + j]) : 0);
        for (size_t j = 0; j < 4; j++)
            text += k + j > bytes.size() ? '=' : DIGITS[three >> (18 - 6 * j) & 63];
    }
    return text;
}

std::string from_base64(const std::string& text) {
    std::string bytes;
    bytes.reserve(3 * text.size() / 4);
    uint32_t bits = 0;
    int have = 0;
    for (char letter : text) {
        if (letter == '=')
            break;
        const char* digit = letter ? std::strchr(DIGITS, letter) : nullptr;
        if (!digit)
            throw OpenMMException("the model in this XML is damaged");
        bits = bits << 6 | uint32_t(digit - DIGITS);
        have += 6;
        if (have >= 8) {
            have -= 8;
            bytes += char(bits >> have & 255);
        }
    }
    return bytes;
}

class CGMLForceProxy : public OpenMM::SerializationProxy {
public:
    CGMLForceProxy() : SerializationProxy("CGMLForce") {}

    void serialize(const void* object, SerializationNode& node) const override {
        const CGMLForce& force = *reinterpret_cast<const CGMLForce*>(object);
        node.setIntProperty("version", 1);
        node.setIntProperty("forceGroup", force.getForceGroup());
        node.setStringProperty("name", force.getName());
        node.setStringProperty("model", force.model);
        node.setIntProperty("copies", force.copies);
        node.setIntProperty("beads", force.beads);
        node.setBoolProperty("periodic", force.periodic);
        node.setBoolProperty("guarded", force.guarded);
        node.setStringProperty("parameter", force.parameter);
        node.setDoubleProperty("defaultValue", force.default_value);
        SerializationNode& particles = node.createChildNode("Particles");
        for (int particle : force.particles)
            particles.createChildNode("Particle").setIntProperty("index", particle);
        SerializationNode& scales = node.createChildNode("Scales");
        for (double scale : force.scales)
            scales.createChildNode("Scale").setDoubleProperty("value", scale);
        node.setStringProperty("archive", to_base64(force.archive));
    }

    void* deserialize(const SerializationNode& node) const override {
        if (node.getIntProperty("version") != 1)
            throw OpenMMException("this CGMLForce was written by a newer openmm_cgml; upgrade it");
        auto force = std::make_unique<CGMLForce>();
        force->setForceGroup(node.getIntProperty("forceGroup", 0));
        force->setName(node.getStringProperty("name", "CGMLForce"));
        force->model = node.getStringProperty("model");
        force->copies = node.getIntProperty("copies");
        force->beads = node.getIntProperty("beads");
        force->periodic = node.getBoolProperty("periodic");
        force->guarded = node.getBoolProperty("guarded", false);
        force->parameter = node.getStringProperty("parameter", "");
        force->default_value = node.getDoubleProperty("defaultValue", 1.0);
        for (const SerializationNode& child : node.getChildNode("Particles").getChildren())
            force->particles.push_back(child.getIntProperty("index"));
        for (const SerializationNode& child : node.getChildNode("Scales").getChildren())
            force->scales.push_back(child.getDoubleProperty("value"));
        force->archive = from_base64(node.getStringProperty("archive"));
        if (force->copies < 1 || force->beads < 1)
            throw OpenMMException("a CGMLForce needs at least one copy and one bead");
        return force.release();
    }
};

// -- what Python calls --------------------------------------------------------------------------

thread_local std::string last_error;

template <class Function>
int guard(Function function) {
    try {
        function();
        return 0;
    } catch (const std::exception& error) {
        last_error = error.what();
        return 1;
    }
}

CGMLForceImpl& impl_of(void* force, void* context) {
    CGMLForce* own = dynamic_cast<CGMLForce*>(static_cast<Force*>(force));
    if (!own)
        throw OpenMMException("this Force is not a CGMLForce");
    return dynamic_cast<CGMLForceImpl&>(own->impl(*static_cast<Context*>(context)));
}

}  // namespace

extern "C" {

const char* cgml_error() { return last_error.c_str(); }

int cgml_register(Resolver function) {
    return guard([&] {
        resolver = function;
        static CGMLForceProxy proxy;
        OpenMM::SerializationProxy::registerProxy(typeid(CGMLForce), &proxy);
    });
}

int cgml_read(void* force, void* context, double* energies, int64_t* sick, int64_t count) {
    return guard([&] { impl_of(force, context).read(energies, sick, count); });
}

int cgml_set_scales(void* force, void* context, const double* scales, int64_t count) {
    return guard([&] { impl_of(force, context).set_scales(scales, count); });
}

// How a Context evaluates the force: compiled or not, and how often it has.
int cgml_status(void* force, void* context, int64_t* compiled, int64_t* evaluations) {
    return guard([&] {
        CGMLForceImpl& impl = impl_of(force, context);
        *compiled = impl.program().compiled;
        *evaluations = impl.evaluations();
    });
}

}  // extern "C"
